"""One machine with models in memory; torch is imported here only."""
