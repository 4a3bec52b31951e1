"""Expansion: makes the jobs of a checked recipe."""
