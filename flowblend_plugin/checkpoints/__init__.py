"""A trajectory's state after a step."""
