"""What on this machine could break a render, or its bits: looked up, judged, and tried."""
