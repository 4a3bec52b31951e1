"""Where denoisers live: the others follow what the user chose for the pipe's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowblend_plugin.denoisers import Placement
from flowblend_plugin.errors import SwitchError


class Residency:
    """Keeps the denoisers of a switch where, and as, the pipe keeps its own.

    Args:
        pipe: The pipeline.
        placements: Role -> its denoisers; ``"large"`` is the pipe's own.

    Raises:
        SwitchError: The pipe offloads its models.
    """

    def __init__(self, pipe: Any, placements: Mapping[str, Placement]) -> None:
        if len(placements) > 1 and getattr(pipe, "_all_hooks", None):
            raise SwitchError(
                "this pipe offloads its models, which the switch can't do for the small denoiser "
                "yet: attach it to a pipe without enable_model_cpu_offload"
            )

    def start(self) -> None:
        """Begin a trajectory: the pipe may have rebuilt its own hooks since the last one."""

    def change(self, leaving: Placement, coming: Placement) -> None:
        """Make room: ``coming`` runs from now on instead of ``leaving``."""

    def restore(self) -> None:
        """Take away everything that was put on any denoiser."""
