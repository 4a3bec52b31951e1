"""What a batch will do, and what that costs."""
