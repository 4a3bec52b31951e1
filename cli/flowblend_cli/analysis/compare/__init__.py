"""Clips compared: statistics, winners, equal bits, and the sentences that say so."""
