"""diffusers schedulers that know stages."""
