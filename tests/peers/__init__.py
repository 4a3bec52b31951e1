"""diffusers' own tests, run with our schedulers and switches: ``python -m tests.peers``."""
