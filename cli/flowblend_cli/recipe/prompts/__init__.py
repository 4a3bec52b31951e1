"""Prompts: reads the prompt text of scenes, and chooses presets by its words."""
