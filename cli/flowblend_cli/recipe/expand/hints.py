"""Hints about recipes that are legal but probably not meant, shown by ``check`` and ``render``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from flowblend_cli.errors import LESS_MEMORY
from flowblend_cli.jobs import Job
from flowblend_cli.models.adapters import text_encoder_weights
from flowblend_cli.models.forwards import PIPELINES
from flowblend_cli.models.prompt_length import prompt_readers
from flowblend_cli.recipe.expand.file_names import Candidate
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.prompts.keywords import find_words, word_lists
from flowblend_cli.recipe.prompts.scene_prompts import WrittenPrompt
from flowblend_cli.recipe.schema.ranges import MANY_STEPS
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.text import count, shorten
from flowblend_cli.utils.images import CONVERSIONS
from flowblend_cli.utils.toml_positions import KeyPath

LARGE_SIDE = 768
LARGE_STEPS = 100
MOST_DOUBTS = 20


def find_hints(recipe: Recipe, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Find every warning about the jobs of a recipe; none of them blocks anything.

    Args:
        recipe: The recipe.
        candidates: Its jobs, drafts and finals among them.
    """
    yield from _many_steps(candidates)
    yield from _unsuited_steps(candidates)
    yield from _idle_drafts(candidates)
    yield from _words_of_chance(recipe, candidates)
    yield from _cut_prompts(recipe, candidates)
    yield from _words_of_others(recipe)
    yield from _empty_stages([candidate.job for candidate in candidates])
    yield from _text_encoders(recipe, candidates)
    yield from _converted_pictures(candidates)


def _many_steps(candidates: Sequence[Candidate]) -> Iterator[str]:
    many = sum(c.job.num_inference_steps > MANY_STEPS for c in candidates)
    if many:
        yield f"{count(many, 'job')} with more than {MANY_STEPS} steps: so many may distort motion"
    large = sum(c.job.num_inference_steps >= LARGE_STEPS and _is_large(c) for c in candidates)
    if large:
        yield (
            f"{count(large, 'job')} of {LARGE_SIDE}p or more with {LARGE_STEPS} steps or more: "
            f"memory may run out; where it does, {LESS_MEMORY}"
        )


def _is_large(candidate: Candidate) -> bool:
    facts = PIPELINES.get(candidate.pipeline_class or "")
    sides = [
        candidate.job.argument(side, getattr(facts, side, None)) for side in ("height", "width")
    ]
    return all(isinstance(side, int) and side >= LARGE_SIDE for side in sides)


def _unsuited_steps(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Warn of jobs outside of the range of their scene's preset."""
    unsuited: Counter[tuple[str, str, str, str]] = Counter()
    for candidate in candidates:
        suits, steps = candidate.suits, candidate.job.num_inference_steps
        if suits is None or candidate.is_draft:
            continue
        is_few = suits.low is not None and steps < suits.low
        if is_few or steps > suits.high:
            preset = candidate.steps.preset if candidate.steps is not None else ""
            unsuited[candidate.job.scene, "fewer" if is_few else "more", preset, str(suits)] += 1
    for (scene, how, preset, best), number in unsuited.items():
        yield f"{scene}: {count(number, 'job')} with {how} steps than suit preset {preset} ({best})"


def _idle_drafts(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Warn of drafts that save nothing."""
    idle = sum(
        c.draft.job.num_inference_steps >= c.job.num_inference_steps for c in candidates if c.draft
    )
    if idle:
        yield (
            f"{count(idle, 'final')} with no more steps than the draft before it: set fewer steps "
            "in [draft]"
        )


def _words_of_chance(recipe: Recipe, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Warn of words that ask for randomness, in scenes whose sampling has none."""
    lists = word_lists()["randomness"]
    prompts = dict.fromkeys(
        (c.scene_index, c.job.prompt) for c in candidates if c.job.sampling.mode == "ode"
    )
    words: dict[str, dict[str, None]] = {}
    for index, prompt in prompts:
        scene = recipe.tables.scenes[index]
        if scene is not None and scene.lint:
            for each in find_words(prompt, lists["words"]):
                words.setdefault(scene.name, {})[each.written] = None
    for name, written in words.items():
        asks = "asks" if len(written) == 1 else "ask"
        is_chinese = any(re.search("[\u3400-\u9fff]", word) for word in written)
        anchors = ", ".join(lists["anchors_zh" if is_chinese else "anchors"])
        yield (
            f"{name}: {' and '.join(map(repr, written))} {asks} for randomness, and mode = "
            f'"ode" adds none: use anchors instead ({anchors}), or mode = "sde"; lint = false in '
            "the scene silences this"
        )


def _cut_prompts(recipe: Recipe, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Warn of prompts whose end no text encoder reads."""
    folder, told = recipe.path.absolute().parent, set()
    asked: dict[tuple[str, WrittenPrompt | KeyPath, str, str, int | None], None] = {}
    for candidate in candidates:
        job, written = candidate.job, candidate.written
        if candidate.pipeline_class is None or written is None:
            continue
        most = job.argument("max_sequence_length")
        asked[job.model.pipeline, written, "prompt", job.prompt, most] = None
        if job.negative_prompt:
            where = candidate.negative or written
            asked[job.model.pipeline, where, "negative prompt", job.negative_prompt, most] = None
    for pipeline, place, what, text, most in asked:
        readers = prompt_readers(pipeline, folder)
        cut = readers.unread(text, most) if readers is not None else None
        if readers is None or cut is None or (pipeline, place, what) in told:
            continue
        told.add((pipeline, place, what))  # one of what its alternatives make is enough
        words, tokens = cut
        message = (
            f"the {what} is longer than the {tokens} tokens that {readers.pipeline_class} reads, "
            f"and its end is cut off: {shorten(words, 400)}"
        )
        found = Problems()
        if isinstance(place, WrittenPrompt):
            place.add_problem(found, message)
        else:
            found.add(place, message)
        yield from (str(recipe.source.shown(entry)) for entry in found)


def _words_of_others(recipe: Recipe) -> Iterator[str]:
    """Warn of what may be meant for another program, each with its line and column."""
    doubts = list(recipe.prompts.doubts)
    for entry in doubts[:MOST_DOUBTS]:
        yield str(recipe.source.shown(entry))
    if len(doubts) > MOST_DOUBTS:
        yield f"and {count(len(doubts) - MOST_DOUBTS, 'more such place')} in prompts"


def _converted_pictures(candidates: Sequence[Candidate]) -> Iterator[str]:
    """Say which pictures aren't handed to the model as they are in their files."""
    for image in dict.fromkeys(c.job.image for c in candidates if c.job.image is not None):
        for conversion in image.conversions:
            yield f"the image {image.path!r} {CONVERSIONS[conversion]}"


def _empty_stages(jobs: Sequence[Job]) -> Iterator[str]:
    empty: Counter[str] = Counter()
    # Jobs of one variant share their stages; hashing these for every job takes longer.
    alike: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        alike.setdefault((id(job.stages), job.num_inference_steps), []).append(job)
    for some in alike.values():
        own = some[0].schedule.num_inference_steps
        if own not in (None, some[0].num_inference_steps):
            continue  # which is told as a problem
        if not some[0].schedule.needs_noise_levels:
            empty.update({message: len(some) for message in some[0].empty_stages()})
    for message, number in empty.items():
        yield f"{message} ({count(number, 'job')})"


def _text_encoders(recipe: Recipe, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Warn of LoRA files that trained a text encoder too, which no stage can have."""
    folder = recipe.path.absolute().parent
    adapters = {adapter for candidate in candidates for adapter in candidate.job.adapters}
    for one in sorted(adapters, key=lambda one: (one.source, one.name, one.role)):
        weights = text_encoder_weights(one, folder)
        if weights:
            yield (
                f"LoRA {one.source!r} has {count(weights, 'weight')} for a text encoder, which "
                f"stages don't give it: only what it has for the {one.role} denoiser is at work"
            )
