"""Reporters that show a run to people, logs and programs; and what ``flowblend status`` reads."""
