"""What could go wrong on this machine, and how far a pair's denoisers are apart."""
