"""Denoisers: where they are loaded from, whether they fit, and where they are placed."""
