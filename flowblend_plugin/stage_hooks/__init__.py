"""What a stage sets beside its denoiser, undone at its end."""
