"""Recipe: reads TOML and makes a batch of jobs of it; pure, and free of torch."""
