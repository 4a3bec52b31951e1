"""Tables about measuring and choosing: [metrics], [score], [adapt], [draft] and [review]."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from flowblend_cli.recipe.schema.fields import Text
from flowblend_cli.recipe.schema.ranges import MAX_STEPS
from flowblend_cli.recipe.schema.stage_values import is_letter
from flowblend_cli.recipe.schema.tables import Table, extended
from flowblend_cli.utils.suggestions import did_you_mean
from flowblend_plugin.metrics.catalogue import METRICS

# What is reported of every render or group of renders anyway, and what can be asked for.
OF_RUNS = tuple(name for name, m in METRICS.items() if m.needs in ("run", "renders"))
MEASURED = tuple(name for name in METRICS if name not in OF_RUNS)
# What compares with a second clip.
OF_REFERENCE = tuple(name for name in MEASURED if METRICS[name].needs != "frames")


def check_metric(name: str) -> str:
    """A metric that can be asked for.

    Raises:
        ValueError: There is none of that name, or it is reported anyway.
    """
    if name in OF_RUNS:
        raise ValueError(f"{name!r} is told anyway: leave it out")
    if name not in MEASURED:
        hint = did_you_mean(name, MEASURED, f"metrics are {', '.join(MEASURED)}")
        raise ValueError(f"there is no metric {name!r}{hint}")
    return name


def check_distinct(values: list[str]) -> list[str]:
    """A list in which nothing stands twice.

    Raises:
        ValueError: Something does.
    """
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} stands twice: keep one")
    return values


def check_draft_stages(stages: str) -> str:
    """The stages of drafts: one letter, or three of which the first and the last may be equal.

    Raises:
        ValueError: They are something else.
    """
    if len(stages) not in (1, 3) or not all(is_letter(letter) for letter in stages):
        raise ValueError(
            f"must be one letter, such as 'S', or three, such as 'LSL', got {stages!r}"
        )
    return stages


Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class MetricsTable(Table):
    """What is measured of every render."""

    names: (
        Annotated[
            list[Annotated[str, AfterValidator(check_metric)]], AfterValidator(check_distinct)
        ]
        | None
    ) = None
    """Metrics to measure; without it, the default ones that suit, and [] measures nothing."""
    reference: dict[str, Any] = Field(default_factory=dict)
    """Axes of the sweep, each with the value, or "highest", that makes a job the reference."""


class AdaptTable(Table):
    """When a clip is rendered once more with other settings, and how often."""

    rounds: Annotated[int, Field(ge=0, le=10)] = 2
    """Most further renders of one job; 0 renders none."""
    weak_motion: Annotated[float, Field(ge=0)] | None = None
    """Value of flow_mean below which motion is too weak; calibrated."""
    jitter: Annotated[float, Field(ge=0)] | None = None
    """Value of unsteadiness above which motion jitters; calibrated."""
    guidance_step: Annotated[float, Field(ge=0)] = 1.0
    """What is added to the guidance before steps are touched; 0 leaves guidance alone."""
    max_guidance: Annotated[float, Field(ge=1)] = 8.0
    """Highest guidance that is tried."""


class DraftTable(Table):
    """How drafts are rendered, and how many of them are finished."""

    steps: Steps = 30
    """Steps of a draft."""
    stages: Annotated[str, AfterValidator(check_draft_stages)] | None = None
    """Stages of a draft; without it, the small denoiser alone, where there is one."""
    keep: Annotated[int, Field(ge=1)] = 1
    """How many explored seeds are finished."""
    reject_after: Steps | None = None
    """Steps after which drafts are looked at, and the worst are given up."""
    reject_keep: Annotated[int, Field(ge=1)] | None = None
    """How many drafts go on after that look; without it, half of them."""


class ReviewTable(Table):
    """What people are asked about a clip."""

    criteria: Annotated[list[Text], AfterValidator(check_distinct)] = Field(default_factory=list)
    """Names of what is scored from 0 to 10; without it, the default ones."""


class ScoreFields(Table):
    """The weight of each metric in the score."""

    def weights(self) -> dict[str, float]:
        """The weights that the table sets."""
        return self.model_dump(exclude_unset=True)


_WEIGHT = Annotated[float, Field(ge=0)] | None
ScoreTable = extended("ScoreTable", ScoreFields, dict.fromkeys(METRICS, (_WEIGHT, None)))
