"""From a scene's prompt text to its prompts."""
