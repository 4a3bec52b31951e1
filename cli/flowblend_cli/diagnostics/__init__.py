"""Diagnostics: the doctor of a machine, and the probe of a pair of denoisers."""
