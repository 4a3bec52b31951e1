"""Finished clips, their records and their measurements."""
