"""Every error that the library raises on purpose.

::

    FlowBlendError
    ├── StageError (ValueError)          stages, boundaries or noise levels that make no schedule
    │   └── BudgetError                  a budget that no schedule can keep
    ├── PairMismatchError (ValueError)   two denoisers that can't share one trajectory
    ├── SwitchError (RuntimeError)       a switch used where or when it can't work
    ├── AdapterError (ValueError)        a LoRA adapter that is missing or doesn't fit
    ├── SchedulerConfigError (ValueError) a scheduler config that can't be carried over
    ├── FlopsError (ValueError)          a denoiser whose forward can't be counted
    ├── CalibrationError (ValueError)    measurements that no boundaries can be chosen from
    ├── CheckpointError (ValueError)     a trajectory's state that can't be stored or resumed
    └── MeasureError (ValueError)        frames that can't be measured, or nothing to measure with

Each message says what was found, what was expected and what to do.
"""

from __future__ import annotations


class FlowBlendError(Exception):
    """Base of every error raised by flowblend."""


class StageError(FlowBlendError, ValueError):
    """Stages, boundaries or noise levels that don't make a schedule."""


class BudgetError(StageError):
    """A share of the all-large cost that no schedule can keep."""


class PairMismatchError(FlowBlendError, ValueError):
    """Two denoisers that can't take turns in one trajectory; lists every mismatch."""

    def __init__(self, large: str, small: str, mismatches: tuple[str, ...]) -> None:
        self.mismatches = mismatches
        lines = "\n".join(f"  - {line}" for line in mismatches)
        super().__init__(
            f"the small denoiser ({small}) doesn't fit the large one ({large}):\n{lines}\n"
            "Choose two denoisers of one family that share their latent space and text encoder."
        )


class SwitchError(FlowBlendError, RuntimeError):
    """A switch used where, or when, it can't work."""


class AdapterError(FlowBlendError, ValueError):
    """A LoRA adapter that is missing, damaged, or made for another denoiser."""


class SchedulerConfigError(FlowBlendError, ValueError):
    """A scheduler config holds something that the target scheduler can't carry."""


class FlopsError(FlowBlendError, ValueError):
    """A denoiser whose forward can't be counted: an unknown class, or a config or size amiss."""


class CalibrationError(FlowBlendError, ValueError):
    """A calibration that can't be read, or that can't answer what it is asked."""


class CheckpointError(FlowBlendError, ValueError):
    """A trajectory's state that can't be stored, or a stored one that can't be resumed."""


class MeasureError(FlowBlendError, ValueError):
    """Frames that can't be measured, a metric that isn't one, or a network that isn't there."""
