"""Finished clips, collected, compared, reviewed by people, and reported."""
