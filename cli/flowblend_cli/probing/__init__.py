"""Probe a recipe's pair of denoisers: what with, the measuring, the words and the picture."""
