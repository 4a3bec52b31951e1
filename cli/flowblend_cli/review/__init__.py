"""Blind reviews: clips under letters, a page to score them on, and what the scores say."""
