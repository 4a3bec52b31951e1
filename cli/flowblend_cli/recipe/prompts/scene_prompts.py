"""The prompts of each scene: from its own key or a file, expanded, and drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.recipe.prompts.presets import AUTO, Preset
from flowblend_cli.recipe.prompts.prompt_files import FLAG_OF, LineProblem, PromptLine, read_prompts
from flowblend_cli.recipe.prompts.sample import draw_sample
from flowblend_cli.recipe.prompts.template import Choice, Expanded, Template
from flowblend_cli.recipe.prompts.wildcards import Wildcards
from flowblend_cli.recipe.schema.ranges import Exploration
from flowblend_cli.recipe.schema.tables import RecipeTable, SceneFields, SceneTable
from flowblend_cli.recipe.schema.validation import Tables, mistyped
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.faults import Fault
from flowblend_cli.recipe.sweep.combinations import all_axes
from flowblend_cli.recipe.sweep.matrix import Binder, variable_names
from flowblend_cli.utils.toml_positions import KeyPath

_NEGATIVE = "negative_prompt"


@dataclass(frozen=True, eq=False)
class WrittenPrompt:
    """A prompt as somebody wrote it.

    Args:
        text: The template.
        template: The template, read.
        path: Where the recipe has it, or names its file.
        line: The line of a file that it comes from, with its own settings.
    """

    text: str
    template: Template
    path: KeyPath
    line: PromptLine | None = None

    def fault(self, message: str) -> Fault:
        """A fault of this prompt; one of a file names its line."""
        return Fault(self.path, f"{self.line.where if self.line else ''}{message}")


@dataclass(frozen=True)
class ScenePrompts:
    """The prompts of a scene.

    Args:
        written: Its templates.
        sample: How many prompts are drawn; None for all.
        sample_seed: By which seed.
        is_most: Whether ``sample`` is only the most that there may be.
        negative_variables: Variables that its negative prompts may have.
    """

    written: tuple[WrittenPrompt, ...]
    sample: int | None = None
    sample_seed: int = 0
    is_most: bool = False
    negative_variables: frozenset[str] = frozenset()

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that stands in its prompts, or may stand in its negative ones."""
        return self.negative_variables.union(*(each.template.variables for each in self.written))

    @property
    def count(self) -> int:
        """How many prompts there are, without making them."""
        total = sum(each.template.count for each in self.written)
        return total if self.sample is None else min(total, self.sample)

    @cached_property
    def has_several(self) -> bool:
        """Whether there may be several: by how they are written, not by how many there are."""
        return any(
            each.line is not None
            or each.path[-1] != "prompt"
            or any(isinstance(part, Choice) for part in each.template.parts)
            for each in self.written
        )

    def expand(self, faults: list[Fault]) -> Iterator[tuple[WrittenPrompt, Expanded]]:
        """Every prompt with the template that it comes from.

        Args:
            faults: Where faults go: a prompt that is too long, fewer prompts than ``sample``.
        """
        total = sum(each.template.count for each in self.written)
        if self.sample is not None and not (self.is_most and total <= self.sample):
            try:
                templates = {each.text: each for each in self.written}
                drawn = draw_sample(
                    {text: each.template for text, each in templates.items()},
                    self.sample,
                    self.sample_seed,
                )
            except ValueError as error:
                path = (*self.written[0].path[:2], "sample")
                faults.append(Fault(path, str(error), related=("scene", "recipe")))
                return
            sources = list(templates.values())
            yield from ((sources[index], prompt) for index, prompt in drawn)
            return
        for each in self.written:
            try:
                yield from ((each, prompt) for prompt in each.template.prompts())
            except ValueError as error:
                faults.append(each.fault(str(error)))


@dataclass
class Prompts:
    """The prompts of a recipe.

    Args:
        scenes: Those of each scene, by its index; broken ones are left out.
        files: The files that were read, relative to the recipe's folder.
    """

    scenes: dict[int, ScenePrompts] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that stands in a prompt."""
        return frozenset[str]().union(*(scene.variables for scene in self.scenes.values()))

    @property
    def lines(self) -> Iterator[tuple[int, WrittenPrompt, PromptLine]]:
        """The prompts that come from files, with the index of their scene."""
        for index, scene in self.scenes.items():
            yield from ((index, each, each.line) for each in scene.written if each.line)


def find_prompts(
    tables: Tables,
    presets: Mapping[str, Preset],
    source: RecipeSource,
    recipe_dir: Path,
    faults: list[Fault],
) -> Prompts:
    """Read the prompts of every scene.

    Args:
        tables: The recipe's tables.
        presets: The presets by name.
        source: The recipe.
        recipe_dir: Folder that wildcards and prompt files are in, or below.
        faults: Where faults go.
    """
    recipe = tables.recipe or RecipeTable()
    variables = frozenset(variable_names(tables, source.document))
    wildcards = Wildcards(recipe_dir, recipe.wildcards, variables)
    binder, found = Binder(tables.matrix), Prompts()
    files = []
    for index, scene in enumerate(tables.scenes):
        if scene is None:
            continue
        document = source.document["scene"][index]
        is_list = isinstance(document.get("prompt"), list)
        before = len(faults)
        if scene.prompts_file is not None:
            files.append(scene.prompts_file)
        if {"prompt", "prompts_file"} & mistyped(document, SceneTable):
            continue  # the key that was meant is told already
        written = tuple(_written(scene, index, is_list, recipe_dir, wildcards, faults))
        if scene.sample_seed is not None and scene.sample is None and recipe.sample is None:
            path = ("scene", index, "sample_seed")
            faults.append(Fault(path, "draws nothing: set sample as well", at="key"))
        if len(faults) == before and written:
            seed = scene.sample_seed if scene.sample_seed is not None else recipe.sample_seed
            sample = scene.sample or recipe.sample
            negative = _negative_prompts(tables, presets, scene, written)
            found.scenes[index] = ScenePrompts(
                written,
                sample,
                seed,
                scene.sample is None,
                frozenset[str]().union(*map(binder.find, negative)),
            )
    found.files = tuple(dict.fromkeys((*files, *wildcards.files)))
    return found


def _negative_prompts(
    tables: Tables,
    presets: Mapping[str, Preset],
    scene: SceneFields,
    written: Iterable[WrittenPrompt],
) -> set[str]:
    """Every negative prompt that a job of a scene may have, as it is written."""
    chosen = presets.values() if scene.preset == AUTO else [presets.get(scene.preset or "")]
    layers: list[Mapping[str, Any]] = [
        tables.defaults.settings() if tables.defaults is not None else {},
        *(preset.settings for preset in chosen if preset is not None),
        scene.settings(),
        *(each.line.settings for each in written if each.line is not None),
        *({_NEGATIVE: value} for value in all_axes(tables).get(_NEGATIVE, ())),
    ]
    return {layer[_NEGATIVE] for layer in layers if _NEGATIVE in layer}


def _written(
    scene: SceneFields,
    index: int,
    is_list: bool,
    recipe_dir: Path,
    wildcards: Wildcards,
    faults: list[Fault],
) -> Iterator[WrittenPrompt]:
    path: KeyPath = ("scene", index, "prompt")
    if scene.prompts_file is None and scene.prompt is None:
        message = "is missing: say what to show, or name a prompts_file"
        faults.append(Fault(path, message, at="key"))
    elif scene.prompts_file is not None and scene.prompt is not None:
        path = ("scene", index, "prompts_file")
        faults.append(Fault(path, "stands beside prompt: keep one of them", at="key"))
    elif scene.prompts_file is not None:
        yield from _of_file(scene, scene.prompts_file, index, recipe_dir, wildcards, faults)
    for place, text in enumerate(scene.prompt or ()):
        here: KeyPath = ("scene", index, "prompt", *((place,) if is_list else ()))
        try:
            if not text.strip():
                raise ValueError("must not be blank")
            yield WrittenPrompt(text, wildcards.parse(text), here)
        except ValueError as error:
            faults.append(Fault(here, str(error)))


def _of_file(
    scene: SceneFields,
    file: str,
    index: int,
    recipe_dir: Path,
    wildcards: Wildcards,
    faults: list[Fault],
) -> Iterator[WrittenPrompt]:
    path: KeyPath = ("scene", index, "prompts_file")
    problems: list[LineProblem] = []
    for line in read_prompts(file, recipe_dir, problems):
        if line.seed is not None and isinstance(scene.seeds, Exploration):
            message = "--d sets a seed, and the scene explores seeds: remove one of them"
            problems.append(LineProblem(line.line, message))
        try:
            yield WrittenPrompt(line.text, wildcards.parse(line.text), path, line)
        except ValueError as error:
            problems.append(LineProblem(line.line, str(error)))
    for number, message in problems:
        where = f"{file}:{number}: " if number is not None else ""
        faults.append(Fault(path, f"{where}{message}"))


def check_lines(prompts: Prompts, pipeline_classes: Iterable[str | None]) -> Iterator[Fault]:
    """Every flag in a file sets an argument that the pipeline takes, where its class is known."""
    table = argument_table()
    classes = [each for each in dict.fromkeys(pipeline_classes) if each in table.pipelines]
    for _, written, line in prompts.lines:
        for name in line.settings:
            for pipeline_class in classes:
                if name in table.arguments and not table.takes(pipeline_class, name):
                    flag = FLAG_OF[name]
                    yield written.fault(f"{pipeline_class} takes no {name}: remove --{flag}")
