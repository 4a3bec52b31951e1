"""Schedulers of diffusers with stages, and solvers by name."""
