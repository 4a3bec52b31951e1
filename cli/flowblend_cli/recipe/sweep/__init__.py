"""Sweep: combinations of swept values, and what each means for model, stages and sampling."""
