"""Finished files: how clips and images are encoded, described, published and recognised again."""
