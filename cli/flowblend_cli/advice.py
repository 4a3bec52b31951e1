"""Advice that is given in several places, in the same words."""

from __future__ import annotations

# What to give up first where memory is short; sampling deterministically costs none.
LESS_MEMORY = (
    'use a smaller denoiser, then a lower resolution, then fewer steps; mode = "ode" can stay'
)
