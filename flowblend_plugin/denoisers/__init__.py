"""Where denoisers come from, and where they live."""
