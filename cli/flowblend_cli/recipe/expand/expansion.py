"""Expansion: makes the jobs of a checked recipe, one per scene, prompt, combination and seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowblend_cli.errors import UsageError
from flowblend_cli.jobs import Batch, ImageSpec, Job, OutputSpec, freeze, schedule_of
from flowblend_cli.models.forwards import PIPELINES
from flowblend_cli.models.pipeline_arguments import argument_table
from flowblend_cli.models.solvers import find_solver
from flowblend_cli.recipe.expand.checks import own_seeds, repeats_of, with_shift
from flowblend_cli.recipe.expand.drafts import add_drafts, find_selections, with_origins
from flowblend_cli.recipe.expand.file_names import Candidate, Fields, name_jobs
from flowblend_cli.recipe.expand.hints import find_hints
from flowblend_cli.recipe.expand.images import (
    MULTIPLE,
    NoSuchArea,
    fit_to_picture,
    shape_problems,
)
from flowblend_cli.recipe.expand.recipe import Recipe
from flowblend_cli.recipe.expand.settings import (
    PromptSettings,
    Setting,
    is_picture,
    line_settings,
    prompt_settings,
    scene_settings,
)
from flowblend_cli.recipe.expand.study import make_study
from flowblend_cli.recipe.prompts.prompt_files import PromptLine
from flowblend_cli.recipe.prompts.scene_prompts import WrittenPrompt
from flowblend_cli.recipe.prompts.template import Expanded, problem_of, too_long
from flowblend_cli.recipe.schema.ranges import MAX_SEED
from flowblend_cli.recipe.schema.tables import UNKNOWN, SceneFields
from flowblend_cli.recipe.source.limits import MAX_PROMPT
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.auto_stages import Settler
from flowblend_cli.recipe.sweep.blend import blamed_for_stages
from flowblend_cli.recipe.sweep.combinations import SEED, Combination, all_axes
from flowblend_cli.recipe.sweep.matrix import Binding
from flowblend_cli.recipe.sweep.variants import Variant
from flowblend_plugin.errors import BudgetError, CalibrationError, StageError
from flowblend_plugin.schedulers.sigmas import noise_levels
from flowblend_plugin.stages import EXTRAPOLATED

DEFAULT_FPS = 16
_STEPS = "num_inference_steps"
_LAYERS = ("output", "defaults", "presets", "scene", "sweep", "matrix")


def expand(recipe: Recipe, problems: Problems, *, settle: bool = True) -> Batch:
    """Make the jobs of a recipe.

    Args:
        recipe: A recipe, or what is sound of one.
        problems: Where problems go: jobs that would share a file, an unsafe file name, a seed out
            of range, or an output that the pipeline can't give.
        settle: Whether to choose the stages that are left to data; else placeholders stay.

    Returns:
        The batch. Jobs of one model stand together; otherwise scene by scene, prompt by prompt,
        the sweep's first axis changing slowest and the seed fastest. Equal jobs are merged. Where
        there are problems, it has warnings and nothing that may be rendered.
    """
    settler = Settler(recipe.path.absolute().parent, is_idle=not settle)
    fields = Fields(recipe)
    candidates: list[Candidate] = []
    for index, scene in enumerate(recipe.tables.scenes):
        if scene is not None:
            base = scene_settings(recipe.tables, recipe.presets, index, scene)
            candidates += _expand_scene(
                _Scene(recipe, index, scene, base, settler, fields), problems
            )
    candidates = add_drafts(recipe, candidates, problems)
    warnings = (*settler.warnings, *find_hints(recipe, candidates))
    nothing = Batch(recipe.name, recipe.output_dir, (), warnings, recipe.path.absolute())
    if problems:
        name_jobs(recipe, candidates, problems)
        if SEED not in all_axes(recipe.tables):
            find_selections(recipe, candidates, [one.job for one in candidates], problems)
        return nothing
    models = list(dict.fromkeys(candidate.job.model for candidate in candidates))
    rank = {model: place for place, model in enumerate(models)}
    candidates.sort(key=lambda candidate: (not candidate.is_draft, rank[candidate.job.model]))
    jobs = name_jobs(recipe, candidates, problems)
    if not problems:
        jobs = with_origins(jobs, candidates)
        selections = find_selections(recipe, candidates, jobs, problems)
    if problems:
        return nothing
    reserve = {job.id for c, job in zip(candidates, jobs, strict=True) if c.is_reserve}
    return Batch(
        recipe.name,
        recipe.output_dir,
        tuple(job for job in jobs if job.id not in reserve),
        warnings,
        recipe.path.absolute(),
        make_study(recipe, candidates, selections),
        tuple(job for job in jobs if job.id in reserve),
        recipe.source.text,
        recipe.devices,
    )


@dataclass(frozen=True)
class _Scene:
    """A scene that is being expanded to jobs.

    Args:
        recipe: The recipe.
        index: Index of the scene.
        scene: The scene.
        base: Its arguments before any sweep.
        settler: Chooses stages that are left to data.
        fields: What file names are made of.
    """

    recipe: Recipe
    index: int
    scene: SceneFields
    base: Mapping[str, Setting]
    settler: Settler
    fields: Fields
    _seeds: dict[int, list[int]] = field(default_factory=dict)

    def seeds(
        self, number: int, line: PromptLine | None, combination: Combination, problems: Problems
    ) -> list[int]:
        """The seeds of a prompt in one combination: repeat r of seed s is s + r, each once."""
        own = line.seed if line is not None else None
        if own is None and number in self._seeds:
            return self._seeds[number]
        swept = combination.axis_path(SEED)
        written = [own] if own is not None else own_seeds(self.scene)
        if swept is not None and combination.values[SEED] is not UNKNOWN:
            written = [combination.values[SEED]]
        repeats = range(repeats_of(self.recipe.tables, self.scene))
        seeds = dict.fromkeys(s + r for s in written for r in repeats)
        if max(seeds) > MAX_SEED:
            message = f"repeats lead to seed {max(seeds)}, above the highest one, {MAX_SEED}"
            path = ("scene", self.index, "seeds" if own is None else "prompts_file")
            problems.add(swept or path, message)
        elif own is None:
            self._seeds[number] = list(seeds)
        return list(seeds)


def _expand_scene(scene: _Scene, problems: Problems) -> Iterator[Candidate]:
    """Make the jobs of a scene: every prompt in every combination with every seed."""
    recipe, prompts = scene.recipe, scene.recipe.prompts.scenes[scene.index]
    seen: dict[Job, set[int]] = {}
    for prompt_index, (written, prompt) in enumerate(prompts.expand(problems)):
        maker = _JobMaker(scene, written, prompt)
        for number, unshifted in enumerate(recipe.variants):
            part = unshifted.combination.has_variables
            is_sure = part is not None and not prompts.negative_variables
            if is_sure and part != bool(prompt.variables):
                continue
            variables = prompt.variables | prompts.negative_variables
            if part is False:  # a combination for prompts without variables
                variables = frozenset()
            bindings = scene.fields.binder.bind(unshifted.combination, variables)
            variant = with_shift(recipe, unshifted, scene.index, written.line, maker.problems)
            seeds = scene.seeds(number, written.line, variant.combination, maker.problems)
            is_named = written.is_sound and _is_named(recipe, scene.scene, variant)
            for values in bindings:
                job, settings, names = maker.make(variant, values)
                if part is not None and part != bool(names):
                    continue
                used = {name: value for name, value in values.items() if name in names}
                template, fields = scene.fields.of(
                    job, written, variant, prompt.choices, used, has_several=prompts.has_several
                )
                fields["prompt_index"] = prompt_index
                # The template decides no pixel: two that lead to one prompt are one job.
                seeds_of_job = seen.setdefault(job, set())
                for seed in seeds:
                    if seed not in seeds_of_job:
                        seeds_of_job.add(seed)
                        yield Candidate(
                            replace(job, seed=seed, prompt_template=written.text),
                            scene.index,
                            {**fields, "seed": seed},
                            template,
                            pipeline_class=variant.pipeline_class,
                            suits=None if _STEPS in settings.unknown else settings.suits,
                            steps=settings.steps,
                            has_name=is_named and _STEPS not in settings.unknown,
                            written=written,
                            negative=settings.paths.get("negative_prompt"),
                        )
        _add_with_line(problems, maker.problems, written)


def _is_named(recipe: Recipe, scene: SceneFields, variant: Variant) -> bool:
    """Whether all is known that the names of a scene's jobs are made of, but its steps."""
    tables = recipe.tables
    named = (tables.recipe, tables.sweep, tables.matrix)
    is_written = not any(table is None or table.broken for table in named)
    axes = variant.unknown & variant.combination.values.keys()
    return is_written and "name" not in scene.broken and not axes and variant.knows("blend")


def _add_with_line(problems: Problems, found: Problems, written: WrittenPrompt) -> None:
    """Add a prompt's problems; those that its line's text or flags may cause name the line."""
    line = written.line
    for entry in found:
        is_of_line = line is not None and (line.has_flags or entry.path == written.path)
        where = line.where if line is not None and is_of_line else ""
        problems.add(entry.path, f"{where}{entry.message}", *entry[2:])


class _JobMaker:
    """Makes the jobs of one prompt, and keeps what is wrong with them."""

    def __init__(self, scene: _Scene, written: WrittenPrompt, prompt: Expanded) -> None:
        self.problems = Problems()
        self._scene = scene
        self._recipe = scene.recipe
        self._folder = scene.recipe.path.absolute().parent
        self._written = written
        self._prompt = prompt
        self._base = {**scene.base, **line_settings(scene.index, written.line)}

    def make(self, variant: Variant, values: Binding) -> tuple[Job, PromptSettings, frozenset[str]]:
        """Make the job of one combination without its seed and its name.

        Args:
            variant: What the combination means.
            values: The values of its variables.

        Returns:
            The job, its arguments and who decided them, and the variables that it has.
        """
        scene, line, binder = self._scene, self._written.line, self._scene.fields.binder
        text = self._prompt.fill(values)
        found = prompt_settings(
            self._recipe,
            scene.index,
            scene.scene,
            self._base,
            text,
            variant,
            line,
            is_sound=self._written.is_sound,
        )
        self._check_steps(found, variant)
        picture = self._recipe.picture_of(scene.index, line)
        settings = self._with_shape(found, variant, picture)
        self._check_rules(settings, found, variant)
        negative = settings.pop("negative_prompt", None)
        problem = too_long() if len(negative or "") > MAX_PROMPT else problem_of(text)
        if problem:
            self.problems.add(self._written.path, problem)
        job = Job(
            id="",
            recipe=self._recipe.name,
            scene=scene.scene.name,
            prompt=text,
            prompt_template="",
            negative_prompt=binder.fill(negative, values) if negative else negative,
            seed=0,
            stages=variant.blend.stages,
            stage_string=variant.blend.letters,
            arguments=tuple(sorted((key, freeze(value)) for key, value in settings.items())),
            model=variant.model,
            sampling=variant.sampling,
            output=self._output(variant, settings, found.unknown),
            image=picture,
            adapters=variant.blend.adapters,
        )
        if not found.unknown and variant.knows("pipeline", "small", "sampling"):
            job = self._with_stages(job, variant)
        if "guidance_scale" not in found.unknown:
            self._check_guidance(job, variant)
        if _STEPS not in found.unknown:
            self._check_first_step(job, variant)
        return job, found, self._prompt.variables | binder.find(negative or "")

    def _check_steps(self, found: PromptSettings, variant: Variant) -> None:
        """Check that a job has no more steps than the recipe allows, and those of its stages."""
        if _STEPS in found.unknown:
            return
        steps, table = found.values[_STEPS], self._recipe.tables.recipe
        most = table.max_steps if table is not None else None
        if most is not None and steps > most:
            message = f"{steps} steps are more than max_steps = {most} in [recipe] allows"
            self.problems.add(found.path, message, related=(*_LAYERS, "recipe"))
        own = schedule_of(variant.blend.stages).num_inference_steps
        if own is not None and steps != own:
            parts = " + ".join(str(stage.steps) for stage in variant.blend.stages)
            message = (
                f"{steps} steps are {found.steps.reason}, and the stages have {parts} = {own} of "
                "their own: leave num_inference_steps out here, or steps out of the stages"
            )
            self.problems.add(found.path, message, related=(*_LAYERS, "blend"))

    def _with_shape(
        self, settings: PromptSettings, variant: Variant, image: ImageSpec | None
    ) -> dict[str, Any]:
        """The arguments with height and width, where their area is to have the picture's shape."""
        values = settings.values
        if "pixel_area" not in values:
            return values
        written = {*self._base, *variant.combination.settings()}
        has_image = image is not None or self._may_have_image()
        found = [*shape_problems(written, variant.pipeline_class, has_image=has_image)]
        own = self._base["pixel_area"].path if "pixel_area" in self._base else None
        path = variant.combination.axis_path("pixel_area") or own or ("scene", self._scene.index)
        for problem in found:
            self.problems.add(path, problem, at="key", related=(*_LAYERS, "model"))
        rules = variant.rules
        multiples = rules.multiples if rules is not None else (MULTIPLE, MULTIPLE)
        if image is not None and not found:
            try:
                return fit_to_picture(values, image, self._folder, multiples)
            except NoSuchArea as error:
                self.problems.add(path, str(error), at="value", related=(*_LAYERS, "model"))
        return {key: value for key, value in values.items() if key != "pixel_area"}

    def _may_have_image(self) -> bool:
        """Whether a picture is named, or was to be, which can't be used."""
        line, scene = self._written.line, self._scene.scene
        is_of_line = line is not None and line.image is not None
        return is_of_line or scene.image is not None or "image" in scene.broken

    def _check_rules(self, values: dict[str, Any], found: PromptSettings, variant: Variant) -> None:
        """Check what the pipeline would refuse, or change without a word."""
        rules = variant.rules
        for key, message in rules.problems(values) if rules is not None else ():
            path = found.paths.get(key) or (found.paths.get("width") if key == "height" else None)
            if path is not None:
                self.problems.add(path, message, related=(*_LAYERS, "model"))

    def _with_stages(self, job: Job, variant: Variant) -> Job:
        """The job with its own stages, where they are left to data."""
        automatic, settler = variant.blend.automatic, self._scene.settler
        if automatic is None or settler.is_idle:
            return job
        try:
            stages = settler.settle(job, automatic)
        except (CalibrationError, StageError, UsageError) as error:
            keys = {BudgetError: "budget", CalibrationError: "calibration"}
            path = variant.combination.path("blend", keys.get(type(error), "stages"))
            related = (*_LAYERS, "blend", "model")
            self.problems.add(path, str(error), at="key", related=related)
            return job
        if job.model.small is None and any(stage.denoiser == "small" for stage in stages):
            message = (
                "is missing, and the stages that were chosen use the small denoiser: name where it "
                'comes from, or set criterion = "extrapolated" in [blend]'
            )
            path = variant.combination.path("model", "small")
            self.problems.add(path, message, related=("model", "blend"))
            return job
        is_adaptive = automatic.kind == "adaptive" and len(stages) > 1
        return replace(job, stages=stages, adaptive=automatic.threshold if is_adaptive else None)

    def _check_guidance(self, job: Job, variant: Variant) -> None:
        """Check that a stage's guidance has a call that runs the unconditional pass."""
        facts = PIPELINES.get(variant.pipeline_class or "")
        if facts is None or facts.is_guided(job):
            return
        for index, stage in enumerate(job.stages):
            if stage.guidance_scale is not None and stage.guidance_scale > 1:
                path = (*variant.combination.path("blend", "stage"), index, "guidance_scale")
                message = (
                    f"{stage.guidance_scale} isn't possible: scene {job.scene!r} runs with "
                    f"{facts.argument} = {job.argument(facts.argument, facts.guidance_scale)} and "
                    f"so has no unconditional pass; set {facts.argument} above 1 there"
                )
                self.problems.add(path, message, related=_LAYERS)

    def _check_first_step(self, job: Job, variant: Variant) -> None:
        """Check that a denoiser runs the first step, where extrapolated ones are to go by it."""
        schedule, steps, sigmas = job.schedule, job.num_inference_steps, None
        if EXTRAPOLATED not in schedule.roles or (
            schedule.needs_noise_levels and not variant.knows("pipeline", "sampling")
        ):
            return
        if schedule.needs_noise_levels:
            solver = find_solver(job.model.pipeline, job.sampling, self._folder)
            sigmas = noise_levels(solver.name, steps, solver.flow_shift, solver.start)
        try:
            schedule.stage_indices(steps, sigmas)
        except StageError as error:
            blend = self._recipe.tables.blend
            assert blend is not None
            key = blamed_for_stages(
                blend, tuple(variant.combination.values_of("blend")), str(error)
            )
            path = variant.combination.path("blend", key)
            self.problems.add(path, f"scene {job.scene!r}: {error}", related=_LAYERS)

    def _output(
        self, variant: Variant, settings: dict[str, Any], unknown: frozenset[str]
    ) -> OutputSpec:
        """The final file's form, with what the recipe leaves open filled in and checked."""
        values = dict(variant.output)
        makes_clips = argument_table().takes(variant.pipeline_class, "num_frames")
        makes_picture = is_picture(settings, variant)
        found = []
        if values["container"] is None:
            values["container"] = "png" if makes_picture else "mp4"
        elif values["container"] == "png" and not makes_picture:
            message = "'png' holds a single picture: set num_frames = 1, or container = \"mp4\""
            found.append(("container", message))
        elif values["container"] == "mp4" and not makes_clips:
            message = f"{variant.pipeline_class} makes pictures: leave container out"
            found.append(("container", message))
        if values["fps"] is None:
            values["fps"] = (variant.pair.fps if variant.pair else None) or DEFAULT_FPS
        odd = [
            f"{side} {settings[side]}"
            for side in ("height", "width")
            if not makes_picture
            and settings.get(side, 0) * values["scale"] % 2
            # What the pipeline itself renders is even, and told already where it isn't.
            and variant.rules is None
        ]
        if odd:
            message = f"H.264 needs even sizes, and {' and '.join(odd)} is odd: set scale = 2"
            found.append(("scale", message))
        is_known = "num_frames" not in unknown and variant.knows("container", "scale")
        for key, message in found if is_known else ():
            self.problems.add(variant.combination.path("output", key), message, related=_LAYERS)
        return OutputSpec(**values)
