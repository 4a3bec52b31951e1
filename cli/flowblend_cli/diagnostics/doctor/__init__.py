"""`flowblend doctor`: what could break a render, or its bits, on this machine."""
