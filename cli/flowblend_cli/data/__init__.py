"""Data that ships with the command: known pairs and the pipelines' arguments."""
