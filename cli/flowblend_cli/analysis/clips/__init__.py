"""Finished clips and what was measured of them."""
