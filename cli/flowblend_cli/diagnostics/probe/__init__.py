"""`flowblend probe`: a pair of denoisers measured, and the plot."""
