"""From a TOML recipe to jobs: pure, and free of torch."""
