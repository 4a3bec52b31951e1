"""Runs a batch: from jobs to finished files."""
