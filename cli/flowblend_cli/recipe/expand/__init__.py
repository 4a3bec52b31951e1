"""From a checked recipe to its jobs."""
