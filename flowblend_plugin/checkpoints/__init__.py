"""Checkpoints: a trajectory's state after a step, stored and resumed."""
