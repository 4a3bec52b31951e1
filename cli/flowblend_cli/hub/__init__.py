"""Models of the Hub: what a recipe asks for, what is here, fetching, checking, pinning."""
