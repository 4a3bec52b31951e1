"""Seeds: one generator per sample for a stochastic solver's noise."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import torch

from flowblend_plugin.errors import SwitchError

Seed = int | Sequence[int]


def noise_generators(seed: Seed, batch: int, copy_number: int = 0) -> list[torch.Generator]:
    """Make the generators of one trajectory's noise.

    Args:
        seed: One number, where sample b of the batch has ``seed + b``, or one per sample.
        batch: Number of samples.
        copy_number: Which private copy of a scheduler it is for, counted from 1; 0 for itself.

    Raises:
        SwitchError: There are more or fewer seeds than samples.
    """
    if not isinstance(seed, Sequence):
        first = operator.index(seed)
        seed = range(first, first + batch)
    if len(seed) != batch:
        raise SwitchError(
            f"the scheduler has {len(seed)} seeds for a batch of {batch} samples: give one a sample"
        )
    return [torch.Generator().manual_seed(_stream(one, copy_number)) for one in seed]


def _stream(seed: int, copy_number: int) -> int:
    """Make a seed for the sampler's noise, unrelated to those that made the initial latents."""
    whose = f" copy {copy_number}" if copy_number else ""
    digest = hashlib.sha256(f"flowblend sde {seed}{whose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
