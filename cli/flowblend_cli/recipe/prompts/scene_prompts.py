"""ScenePrompts: the prompts of each scene, read from its own key or a file, for the expansion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.recipe.prompts.foreign import find_foreign, find_syntax
from flowblend_cli.recipe.prompts.presets import AUTO, Preset
from flowblend_cli.recipe.prompts.prompt_files import FLAG_OF, LineProblem, PromptLine, read_prompts
from flowblend_cli.recipe.prompts.sample import draw_sample
from flowblend_cli.recipe.prompts.syntax import InvalidPrompt
from flowblend_cli.recipe.prompts.template import Expanded, Note, Template, Variable
from flowblend_cli.recipe.prompts.wildcards import Wildcards
from flowblend_cli.recipe.schema.ranges import Exploration
from flowblend_cli.recipe.schema.tables import UNKNOWN, RecipeTable, SceneFields, SceneTable
from flowblend_cli.recipe.schema.validation import Tables, mistyped
from flowblend_cli.recipe.source.document import RecipeSource
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import all_axes, table_of
from flowblend_cli.recipe.sweep.matrix import Binder, variable_names
from flowblend_cli.utils.toml_positions import KeyPath

_NEGATIVE = "negative_prompt"
_STAND_IN = Template(("?",))


@dataclass(frozen=True, eq=False)
class WrittenPrompt:
    """A prompt as it is written.

    Args:
        text: The template.
        template: The template, read.
        path: Where the recipe has it, or names its file.
        line: The line of a file that it comes from, with its own settings.
        is_sound: Whether its text is known; another one stands for what can't be read.
    """

    text: str
    template: Template
    path: KeyPath
    line: PromptLine | None = None
    is_sound: bool = True

    def add_problem(self, problems: Problems, message: str, offset: int = 0) -> None:
        """Add a problem of this prompt, or of one place in it; one of a file names its line."""
        if self.line is None:
            problems.add(self.path, message, at=offset)
        else:
            where = self.line.place(offset) if offset else self.line.where
            problems.add(self.path, f"{where}{message}")


@dataclass(frozen=True)
class ScenePrompts:
    """The prompts of a scene.

    Args:
        written: Its templates.
        sample: How many prompts are drawn; None for all.
        sample_seed: The seed that they are drawn by.
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
            or any(not isinstance(part, (str, Variable)) for part in each.template.parts)
            for each in self.written
        )

    def expand(self, problems: Problems) -> Iterator[tuple[WrittenPrompt, Expanded]]:
        """Make every prompt, with the template that it comes from.

        Args:
            problems: Where problems go: a prompt that is too long, fewer prompts than ``sample``.
        """
        total = sum(each.template.count for each in self.written)
        if self.sample is not None and not (self.is_most and total <= self.sample):
            sources = {each.text: each for each in self.written}
            templates = {text: each.template for text, each in sources.items()}
            try:
                drawn = draw_sample(templates, self.sample, self.sample_seed)
            except ValueError as error:
                path = (*self.written[0].path[:2], "sample")
                problems.add(path, str(error), related=("scene", "recipe"))
                return
            by_index = list(sources.values())
            yield from ((by_index[index], prompt) for index, prompt in drawn)
            return
        for each in self.written:
            try:
                yield from ((each, prompt) for prompt in each.template.prompts())
            except ValueError as error:
                each.add_problem(problems, str(error))


@dataclass
class Prompts:
    """The prompts of a recipe.

    Args:
        scenes: Those of each scene, by its index.
        files: The files that were read, relative to the recipe's folder.
        doubts: What in them may be meant for another program.
    """

    scenes: dict[int, ScenePrompts] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    doubts: Problems = field(default_factory=Problems)

    @property
    def variables(self) -> frozenset[str]:
        """Every variable that stands in a prompt."""
        return frozenset[str]().union(*(scene.variables for scene in self.scenes.values()))

    def few(self) -> Prompts:
        """The same with one prompt a scene, whose text isn't known."""
        scenes = {
            index: ScenePrompts((replace(one.written[0], template=_STAND_IN, is_sound=False),))
            for index, one in self.scenes.items()
        }
        return replace(self, scenes=scenes)

    @property
    def are_sound(self) -> bool:
        """Whether every text is known."""
        return all(each.is_sound for scene in self.scenes.values() for each in scene.written)

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
    problems: Problems,
) -> Prompts:
    """Read the prompts of every scene.

    Args:
        tables: The recipe's tables.
        presets: The presets by name.
        source: The recipe.
        recipe_dir: Folder that wildcards and prompt files are in, or below.
        problems: Where problems go.
    """
    recipe = tables.recipe or RecipeTable()
    variables = frozenset(variable_names(tables, source.document))
    wildcards = Wildcards(recipe_dir, recipe.wildcards, variables)
    binder, prompts = Binder(tables.matrix), Prompts()
    files = []
    for index, scene in enumerate(tables.scenes):
        if scene is None:
            continue
        every = source.document.get("scene")
        document = every[index] if isinstance(every, list) and index < len(every) else {}
        if scene.prompts_file is not None:
            files.append(scene.prompts_file)
        reader = _SceneReader(scene, index, recipe_dir, wildcards, prompts.doubts)
        written: tuple[WrittenPrompt, ...] = ()
        if not {"prompt", "prompts_file"} & (mistyped(document, SceneTable) | scene.broken):
            written = tuple(reader.read(is_list=isinstance(document.get("prompt"), list)))
        if scene.sample_seed is not None and scene.sample is None and recipe.sample is None:
            path = ("scene", index, "sample_seed")
            reader.problems.add(path, "draws nothing: set sample as well", at="key")
        problems.extend(reader.problems)
        if not written:
            where = ("scene", index, "prompt")
            written = (WrittenPrompt("?", _STAND_IN, where, is_sound=False),)
        is_sampled = all(each.is_sound for each in written)
        prompts.scenes[index] = ScenePrompts(
            written,
            (scene.sample or recipe.sample) if is_sampled else None,
            scene.sample_seed if scene.sample_seed is not None else recipe.sample_seed,
            scene.sample is None,
            frozenset[str]().union(
                *map(binder.find, _negative_prompts(tables, presets, scene, written))
            ),
        )
    prompts.files = tuple(dict.fromkeys((*files, *wildcards.files)))
    _check_negatives(tables, prompts.doubts, problems)
    return prompts


def _check_negatives(tables: Tables, doubts: Problems, problems: Problems) -> None:
    """Check the negative prompts that the recipe itself writes."""
    lint = all(scene is None or scene.lint for scene in tables.scenes)
    found: list[tuple[KeyPath, Any]] = []
    if tables.defaults is not None:
        found.append((("defaults", _NEGATIVE), tables.defaults.settings().get(_NEGATIVE)))
    for name, preset in tables.presets.items():
        if preset is not None:
            found.append((("presets", name, _NEGATIVE), preset.settings().get(_NEGATIVE)))
    for index, scene in enumerate(tables.scenes):
        if scene is not None and scene.lint:
            found.append((("scene", index, _NEGATIVE), scene.settings().get(_NEGATIVE)))
    for number, text in enumerate(all_axes(tables).get(_NEGATIVE, ())):
        found.append(((table_of(tables, _NEGATIVE), _NEGATIVE, number), text))
    for path, text in found:
        if lint or path[0] == "scene":
            for note in _negative_notes(text if isinstance(text, str) else ""):
                (problems if note.is_certain else doubts).add(path, note.message, at=note.offset)


def _negative_notes(text: str) -> Iterator[Note]:
    """What in a negative prompt may be meant for another program, or for a prompt of ours."""
    yield from find_foreign(text)
    yield from find_syntax(text)


def _negative_prompts(
    tables: Tables,
    presets: Mapping[str, Preset],
    scene: SceneFields,
    written: Iterable[WrittenPrompt],
) -> set[str]:
    """Every negative prompt that a job of a scene may have, as it is written."""
    chosen = presets.values() if scene.preset == AUTO else [presets.get(scene.preset or "")]
    settings: list[Mapping[str, Any]] = [
        tables.defaults.settings() if tables.defaults is not None else {},
        *(preset.settings for preset in chosen if preset is not None),
        scene.settings(),
        *(each.line.settings for each in written if each.line is not None),
        *({_NEGATIVE: value} for value in all_axes(tables).get(_NEGATIVE, ())),
    ]
    found = {each[_NEGATIVE] for each in settings if _NEGATIVE in each}
    return {text for text in found if text is not UNKNOWN}


class _SceneReader:
    """Reads the prompts that one scene writes or names, and keeps what is wrong with them."""

    def __init__(
        self,
        scene: SceneFields,
        index: int,
        recipe_dir: Path,
        wildcards: Wildcards,
        doubts: Problems,
    ) -> None:
        self.problems = Problems()
        self._doubts = doubts
        self._scene = scene
        self._path: KeyPath = ("scene", index)
        self._recipe_dir = recipe_dir
        self._wildcards = wildcards

    def read(self, *, is_list: bool) -> Iterator[WrittenPrompt]:
        """Read the prompts; ``is_list`` says whether ``prompt`` is written as a list."""
        file, prompts = self._scene.prompts_file, self._scene.prompt
        if file is None and prompts is None:
            message = "is missing: say what to show, or name a prompts_file"
            self.problems.add((*self._path, "prompt"), message, at="key")
        elif file is not None and prompts is not None:
            message = "stands beside prompt: keep one of them"
            self.problems.add((*self._path, "prompts_file"), message, at="key")
        elif file is not None:
            yield from self._read_file(file)
        for place, text in enumerate(prompts or ()):
            path: KeyPath = (*self._path, "prompt", *((place,) if is_list else ()))
            if text.strip():
                yield from self._written(text, path)
            else:
                self.problems.add(path, "must not be blank")

    def _read_file(self, file: str) -> Iterator[WrittenPrompt]:
        path: KeyPath = (*self._path, "prompts_file")
        problems: list[LineProblem] = []
        for line in read_prompts(file, self._recipe_dir, problems):
            if line.seed is not None and isinstance(self._scene.seeds, Exploration):
                message = "--d sets a seed, and the scene explores seeds: remove one of them"
                problems.append(LineProblem(line.line, None, message))
            yield from self._written(line.text, path, line)
        for problem in problems:
            self.problems.add(path, f"{problem.place(file)}{problem.message}")

    def _written(
        self, text: str, path: KeyPath, line: PromptLine | None = None
    ) -> Iterator[WrittenPrompt]:
        """Read one prompt; what is meant for another program is a problem where that is certain."""
        try:
            written = WrittenPrompt(text, self._wildcards.parse(text), path, line)
        except InvalidPrompt as error:
            written = WrittenPrompt(text, _STAND_IN, path, line, is_sound=False)
            written.add_problem(self.problems, str(error), error.offset)
            yield written
            return
        negative = line.settings.get(_NEGATIVE, "") if line is not None else ""
        if self._scene.lint:
            for note in (*written.template.notes, *_negative_notes(negative)):
                collector = self.problems if note.is_certain else self._doubts
                written.add_problem(collector, f"{note.place}{note.message}", note.offset)
        yield written


def check_lines(
    prompts: Prompts, pipeline_classes: Iterable[str | None], problems: Problems
) -> None:
    """Check that pipelines take what flags in files set, where their class is known."""
    table = argument_table()
    classes = [each for each in dict.fromkeys(pipeline_classes) if each in table.pipelines]
    for _, written, line in prompts.lines:
        for name in line.settings:
            for pipeline_class in classes:
                if name in table.arguments and not table.takes(pipeline_class, name):
                    message = f"{pipeline_class} takes no {name}: remove --{FLAG_OF[name]}"
                    written.add_problem(problems, message)
