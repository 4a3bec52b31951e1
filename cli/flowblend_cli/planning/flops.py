"""Cost: the FLOPs of jobs, and of the same jobs all large, from configs alone.

Two conventions, always named: ``linear_only`` leaves the products of attention out, as papers
usually do; ``full`` has them. Both count 2 per multiply-add, and every forward that runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowblend_cli.errors import ModelMissingError
from flowblend_cli.jobs import Job, ModelSpec
from flowblend_cli.models.contents import read_json
from flowblend_cli.models.forwards import PIPELINES, PipelineFacts, forwards_by_role
from flowblend_cli.models.identity import local_folder
from flowblend_cli.models.registry import (
    ModelSource,
    known_pairs,
    resolve_model,
    resolve_small,
)
from flowblend_cli.planning.flops_cache import Count, count_all, request
from flowblend_cli.planning.plan import Plan, job_noise_levels
from flowblend_plugin.stages import EXTRAPOLATED

CONVENTIONS = ("linear_only", "full")
_LARGE_SUBFOLDERS = ("transformer", "unet")
_SMALL_SUBFOLDERS = ("transformer_small", *_LARGE_SUBFOLDERS, "")
_UNITS = ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs")


@dataclass(frozen=True)
class Cost:
    """What one job costs, or why that can't be told.

    Args:
        forwards: Forwards of each denoiser, a batch of two counting as two; None if unknown.
        counts: FLOPs of one forward of each denoiser that runs, and of the large one; empty if
            unknown.
        note: Why something is unknown, or what the figures leave out; None if nothing is.
        saved: Forwards that extrapolated steps save.
    """

    forwards: Mapping[str, int] | None = None
    counts: Mapping[str, Count] | None = None
    note: str | None = None
    saved: int = 0

    def total(self, convention: str) -> int:
        """FLOPs of the whole job; 0 if unknown."""
        return sum(self._of_role(role, convention) for role in self.forwards or ())

    def all_large(self, convention: str) -> int:
        """FLOPs of the same forwards, saved ones too, by the large denoiser; 0 if unknown."""
        if not self.counts:
            return 0
        per_forward: int = getattr(self.counts["large"], convention)
        return (sum((self.forwards or {}).values()) + self.saved) * per_forward

    def _of_role(self, role: str, convention: str) -> int:
        count = (self.counts or {}).get(role, Count())
        return int((self.forwards or {}).get(role, 0) * getattr(count, convention))

    def to_document(self) -> dict[str, Any]:
        """Forwards and FLOPs as plain JSON values; ``flops`` is null where it is unknown."""
        denoisers = {
            role: {
                "per_forward": {name: getattr(count, name) for name in CONVENTIONS},
                "per_video": {name: self._of_role(role, name) for name in CONVENTIONS},
            }
            for role, count in (self.counts or {}).items()
        }
        summed = sum_up([self])
        return {
            "forwards": None if self.forwards is None else dict(self.forwards),
            "flops": None if summed is None else {**summed, "denoisers": denoisers},
            "flops_note": self.note,
        }


def cost_plan(
    plan: Plan, on_counting: Callable[[int], None] | None = None, *, known_only: bool = False
) -> list[Cost]:
    """Tell what each job of a plan costs.

    Args:
        plan: The plan.
        on_counting: Called with the number of forwards that nobody counted before, if any: that
            takes seconds, once.
        known_only: Tell only what was counted before, which takes no time.

    Returns:
        A cost for each job, in order. Nothing is raised where something can't be told: the cost
        says why.
    """
    recipe_dir = plan.batch.source.parent
    models: dict[ModelSpec, _Models] = {}
    known: dict[tuple[Any, ...], _Asked] = {}
    keys = []
    for job in (entry.job for entry in plan.jobs):
        if job.model not in models:
            models[job.model] = _Models(job.model, recipe_dir)
        has = (job.negative_prompt is None, job.image is None)
        key = (job.model, job.stages, job.sampling, job.arguments, *has)
        if key not in known:
            known[key] = _ask(job, models[job.model], recipe_dir)
        keys.append(key)
    requests = [text for entry in known.values() for text in entry.requests.values()]
    counts = count_all(requests, on_counting, known_only=known_only)
    costs = {key: _cost(entry, counts) for key, entry in known.items()}
    return [costs[key] for key in keys]


def sum_up(costs: Iterable[Cost]) -> dict[str, Any] | None:
    """Add costs up, with the ideal speed-up; None where none is known."""
    known = [cost for cost in costs if cost.counts]
    if not known:
        return None
    times = Counter(map(id, known))  # jobs of one kind share their cost
    kinds = {id(cost): cost for cost in known}.items()
    totals = {name: sum(times[n] * cost.total(name) for n, cost in kinds) for name in CONVENTIONS}
    all_large = {n: sum(times[i] * cost.all_large(n) for i, cost in kinds) for n in CONVENTIONS}
    return {
        **totals,
        **{f"all_large_{name}": flops for name, flops in all_large.items()},
        **{f"ideal_speedup_{n}": round(all_large[n] / totals[n], 4) for n in CONVENTIONS},
    }


def in_words(total: int, all_large: int) -> str:
    """Say FLOPs for people: ``"1.23 PFLOPs of 1.90 all large: ideal speed-up 1.54x"``."""
    power = min((len(str(all_large)) - 1) // 3, len(_UNITS) - 1)
    shown = [f"{flops / 1000**power:.2f}" for flops in (total, all_large)]
    speed_up = f"{all_large / total:.2f}x"
    return f"{shown[0]} {_UNITS[power]} of {shown[1]} all large: ideal speed-up {speed_up}"


@dataclass(frozen=True)
class _Asked:
    """One job's forwards and the requests for their counts, or the note that stands for them."""

    forwards: Mapping[str, int] | None
    requests: Mapping[str, str]
    note: str | None
    saved: int = 0


class _Models:
    """Pipeline and denoisers of a job, as their configs tell, each config looked up once."""

    def __init__(self, model: ModelSpec, recipe_dir: Path) -> None:
        self.pipeline = resolve_model(model.pipeline, recipe_dir)
        further = dict(model.denoisers) | ({"small": model.small} if model.small else {})
        self._sources = {role: resolve_small(name, recipe_dir) for role, name in further.items()}
        self._sources["large"] = self.pipeline
        self._configs: dict[str, Mapping[str, Any]] = {}
        self.index: Mapping[str, Any] = {}
        self.vae: Mapping[str, Any] = {}
        folder = _folder(self.pipeline)
        if folder is not None:
            self.index = read_json(folder / "model_index.json")
            self.vae = read_json(folder / "vae" / "config.json")

    @property
    def pipeline_class(self) -> str | None:
        """Class of the pipeline, as far as it can be told."""
        return self.pipeline.pipeline_class or self.index.get("_class_name")

    def config(self, role: str) -> Mapping[str, Any]:
        """A denoiser's config; empty where it isn't known."""
        if role not in self._configs:
            self._configs[role] = self._find(role)
        return self._configs[role]

    def _find(self, role: str) -> Mapping[str, Any]:
        source = self._sources.get(role)
        if source is None:
            return {}
        known = known_configs().get(_architectures().get(source.repo or "", ""))
        if known is not None:
            return known
        folder = _folder(source)
        names = _LARGE_SUBFOLDERS if role == "large" else _SMALL_SUBFOLDERS
        for name in (source.subfolder,) if source.subfolder else names:
            if folder is not None and (config := read_json(folder / name / "config.json")):
                return config
        return {}


@cache
def known_configs() -> dict[str, Mapping[str, Any]]:
    """The denoiser configs of the known pairs, by the name of their architecture."""
    text = (files("flowblend_cli") / "data" / "denoiser_configs.json").read_text("utf-8")
    configs: dict[str, Mapping[str, Any]] = json.loads(text)
    return configs


@cache
def _architectures() -> dict[str, str]:
    """The architecture of each repository of a known pair; a pair of one size names its own."""
    found = {}
    for pair in known_pairs().values():
        if pair.small is not None:
            found[pair.small] = pair.architectures.get("small", "")
        if pair.pipeline is not None:
            found[pair.pipeline] = pair.architectures.get("large", pair.name)
    return found


def _folder(source: ModelSource) -> Path | None:
    """A model's folder; None where it isn't on this machine, or needn't be."""
    if source.repo in _architectures():
        return None
    try:
        return local_folder(source)
    except ModelMissingError:
        return None


def _ask(job: Job, models: _Models, recipe_dir: Path) -> _Asked:
    name = models.pipeline_class
    facts = PIPELINES.get(name or "")
    if facts is None:
        found = name or f"{job.model.pipeline}, which isn't on this machine,"
        return _Asked(None, {}, f"how many forwards {found} runs a step isn't known")
    for argument, neutral in facts.uncounted.items():
        value = job.argument(argument, neutral)
        if value != neutral:
            return _Asked(None, {}, f"what {argument} = {value!r} changes isn't counted")
    distilled = models.config("large").get("time_cond_proj_dim")  # guidance is fed to it
    levels = job_noise_levels(job, recipe_dir)
    forwards = {"large": 0, "small": 0} | forwards_by_role(
        job.stages,
        job.schedule.stage_indices(job.num_inference_steps, levels),
        guided=facts.is_guided(job) and distilled is None,
        second_order=_is_second_order(job, models),
    )
    saved = forwards.pop(EXTRAPOLATED, 0)
    clip = _clip(job, facts, models)
    requests = {}
    for role in ("large", *(role for role, runs in forwards.items() if runs and role != "large")):
        config = models.config(role)
        if not config:
            return _Asked(forwards, {}, f"the config of the {role} denoiser isn't on this machine")
        requests[role] = request(config, clip)
    notes = []
    if any(stage.cache is not None for stage in job.stages):
        notes.append("caches skip work that can't be told beforehand: these are upper bounds")
    if job.adapters:
        notes.append("the products of LoRA adapters aren't counted")
    return _Asked(forwards, requests, "; ".join(notes) or None, saved)


def _clip(job: Job, facts: PipelineFacts, models: _Models) -> dict[str, Any]:
    pipeline = models.pipeline_class
    starts_from_picture = pipeline == "LTXImageToVideoPipeline" or (
        pipeline == "LTXConditionPipeline" and job.image is not None
    )
    sizes = {n: job.argument(n, getattr(facts, n)) for n in ("height", "width", "num_frames")}
    return {
        **sizes,
        "text_tokens": job.argument("max_sequence_length", facts.text_tokens),
        "timestep_per_token": starts_from_picture or bool(models.index.get("expand_timesteps")),
        "vae": dict(models.vae),
    }


def _is_second_order(job: Job, models: _Models) -> bool:
    if job.sampling.scheduler is not None:
        return job.sampling.scheduler == "heun"
    own = models.index.get("scheduler")
    return isinstance(own, list) and "Heun" in str(own[-1])


def _cost(asked: _Asked, counts: Mapping[str, Count]) -> Cost:
    found = {role: counts[text] for role, text in asked.requests.items()}
    for role, count in found.items():
        if count.reason is not None:
            return Cost(asked.forwards, None, f"{role} denoiser: {count.reason}")
    return Cost(asked.forwards, found or None, asked.note, asked.saved)
