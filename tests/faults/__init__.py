"""Faults on purpose: kills at random moments, and input and output that fail at the Nth call."""
