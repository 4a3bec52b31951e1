"""Small faults put into the spine on purpose, to see whether its tests notice."""
