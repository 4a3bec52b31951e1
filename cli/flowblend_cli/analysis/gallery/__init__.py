"""Pictures of a batch: the contact sheet and the comparison."""
