"""Models: what is known of them without loading them, and downloads from the Hub."""
