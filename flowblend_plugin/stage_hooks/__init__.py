"""Stage hooks: what a stage sets beside its denoiser; ``base`` has their interface."""
