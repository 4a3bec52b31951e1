"""Determinism: renders that must be equal in every bit, compared for reports. Pure Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from flowblend_cli.analysis.clips.clip import Clip
from flowblend_cli.analysis.clips.variants import group, settings


@dataclass(frozen=True)
class EqualGroup:
    """Renders that must have the same pixels.

    Args:
        scene: Their scene.
        jobs: Ids of their jobs.
        renders: How many renders there are.
        equal: How many of them agree with each other, at most.
        pixels: The hash of these.
    """

    scene: str
    jobs: tuple[str, ...]
    renders: int
    equal: int
    pixels: str


@dataclass(frozen=True)
class Determinism:
    """Renders of one sampling mode that must be equal.

    Args:
        mode: ``"ode"`` or ``"sde"``.
        groups: Renders that must be equal.
        noises: How many added noises were tried of one scene and seed, at most; 0 for one each.
        different: How many different clips these gave.
    """

    mode: str
    groups: tuple[EqualGroup, ...]
    noises: int = 0
    different: int = 0

    @property
    def renders(self) -> int:
        """Renders in all groups."""
        return sum(one.renders for one in self.groups)

    @property
    def equal(self) -> int:
        """Renders that are equal, in all groups."""
        return sum(one.equal for one in self.groups)

    @property
    def holds(self) -> bool:
        """Whether everything that must be equal is."""
        return self.equal == self.renders


def determinism_by_mode(clips: Sequence[Clip]) -> tuple[Determinism, ...]:
    """Compare the renders that must be equal, for each mode that has any.

    Every render of one job must be; of a deterministic sampler, also those of jobs that differ in
    the seed of a noise which it never adds.

    Args:
        clips: The clips of one recipe.
    """
    modes = []
    for mode, some in group(clips, lambda clip: clip.job.sampling.mode).items():
        groups = tuple(_equal_groups(some, is_deterministic=mode == "ode"))
        noises = different = 0
        if mode != "ode":
            tried = group(some, lambda clip: _identity(clip, with_noise=False)).values()
            most = max(tried, key=lambda alike: len({clip.noise for clip in alike}))
            noises = len({clip.noise for clip in most})
            different = len({clip.record.pixels_sha256 for clip in most})
        if groups or noises > 1:
            modes.append(Determinism(mode, groups, noises if noises > 1 else 0, different))
    return tuple(modes)


def _equal_groups(clips: Iterable[Clip], *, is_deterministic: bool) -> Iterable[EqualGroup]:
    alike = group(clips, lambda clip: _identity(clip, with_noise=not is_deterministic))
    for some in alike.values():
        renders = [digest for clip in some for digest in clip.record.pixels]
        if len(renders) > 1:
            (pixels, equal), *_ = Counter(renders).most_common(1)
            jobs = tuple(clip.id for clip in some)
            yield EqualGroup(some[0].job.scene, jobs, len(renders), equal, pixels)


def _identity(clip: Clip, *, with_noise: bool) -> Hashable:
    noise = clip.noise if with_noise else clip.seed
    return clip.subject, noise, clip.job.image, frozenset(settings(clip.job).items())
