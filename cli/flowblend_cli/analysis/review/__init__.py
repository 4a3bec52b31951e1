"""Blind reviews: anonymous copies out, raters' files in."""
