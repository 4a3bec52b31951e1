"""What happens to a finished clip while the run goes on."""
