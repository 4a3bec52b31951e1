"""What people and logs see of a run."""
