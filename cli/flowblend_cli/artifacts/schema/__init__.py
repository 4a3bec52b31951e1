"""Schema of what is read back: every file that a run leaves, by the rules that recipes have."""
