"""Source of a recipe: its text, merged to one document in which every value knows its place."""
