"""A recipe's text: one merged document in which every value knows its place."""
