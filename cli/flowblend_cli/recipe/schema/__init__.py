"""Schema: the keys of a recipe, and the values that they take."""
