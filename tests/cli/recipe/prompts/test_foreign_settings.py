"""Flags, infotext and JSON of other programs are told with the word to use; prose stays prose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblend_cli.recipe.prompts.syntax import InvalidPrompt, parse_template

Problems = Callable[..., list[str]]
HEAD = '[model]\npipeline = "sprites"\n[[scene]]\nname = "a"\n'

FLAGS = [
    ("--neg bad", "negative_prompt"), ("--no bad", "negative_prompt"),
    ("--negative-prompt bad", "negative_prompt"), ("--neg_prompt 'bad'", "negative_prompt"),
    ("-W 512", "as width"), ("-H 512", "as height"), ("-s 20", "num_inference_steps"),
    ("-S1234", "seeds of a [[scene]]"), ("-C 7.5", "guidance_scale"), ("-n 4", "repeats"),
    ("-A k_lms", "scheduler in [sampling]"), ("-w 512", "as width"),
    ("--ar 16:9", "width and height"), ("--v 6", "pipeline in [model]"), ("--niji 5", "pipeline"),
    ("--q 2", "num_inference_steps"), ("--seed=5", "seeds of a [[scene]]"),
    ("--steps=20", "num_inference_steps"), ("--width 512", "as width"), ("--w512", "as width"),
    ("--sample_steps 50", "num_inference_steps"), ("--size 832*480", "width and height"),
    ("--sample_guide_scale 5.0", "guidance_scale"), ("--frame_num 81", "num_frames"),
    ("--video_length 81", "num_frames"), ("--flow-shift 7", "flow_shift in [sampling]"),
    ("--stylize 250", "nothing here takes it"), ("--weird 3000", "nothing here takes it"),
    ("--hires_fix", "nothing here takes it"), ("--raw", "nothing here takes it"),
]  # fmt: skip
PROSE = [
    "a sign that says 5:30 - open",
    "(close up) of a cat",
    "C# book on a desk",
    "day [and night]",
    "a well-lit room -- quiet, warm",
    "the cat -- black -- sleeps",
    "he said --no way-- and left",
    "a man--tall, thin--walks",
    "room #5 in a hotel",
    "the number # 5 on a door",
    "page # one",
    "tweet with #hashtag and #cat",
    "a 16:9 frame",
    "scale 1:20 model",
    "recipe: 2 eggs, 1 cup of flour",
    "Steps: three stone steps lead to a door",
    "Size: a giant among men",
    "A poster with the words Model: T, 1908",
    "Seed: a sunflower seed in soil",
    "a stairway, steps: worn and mossy",
    "a thermometer at -5 degrees",
    "temperature -20 C",
    "a t-shirt with -w- logo",
    "a jet F-16 and U-2",
    "vitamin B-12 pills",
    "a -40 sign",
    "size - small",
    "a cat - dog mix",
    "R&B band // neon sign",
    "either and/or both",
    "http://x.y/z",
    "shot on 35mm f/1.8",
    "f/2.8, 1/250 s",
    "aspect ratio 16:9",
    "1920x1080 screen",
    "Dr. Who: part 2",
    "Chapter 3: the fall",
    "a 3-d printer",
    "An iPhone 15 - new",
    "(smiling), [laughing]",
    "a man (with a hat) and a woman",
    "Q: what? A: nothing",
    "A \u2014 dash \u2014 in text",
    "a cat \u2014 w dog",
    "cat \u2013 h 5",
    "Negative: a film strip on a lightbox",
    "a negative prompt on a sign",
    "music \u266f and \u266d",
    "a C# minor chord",
    "F# major piano",
    "the #1 dad mug",
    "a 50% off sign",
    "price: 5, weight: 3",
    "height: tall, width: narrow",
    "a model: blonde, tall",
    "camera: 35mm, lens: wide",
    "Time: 10:30, Place: Rome",
    "frames: wooden, gilded",
    "a version: 2, of the same man",
    "width: 3 m, plank of wood",
    "--- a cat ---",
    "-- a dash first",
    "* a list\n- one\n- two",
    "- a cat\n- a dog\n-w is no flag",
    "a line\n-- signed",
    "ratio 2:1, speed: 60",
    "a book titled 'Prompt: 1984'",
    "a robot says /imagine that",
    "a 'no' sign",
    "no cats",
    "--",
    "it costs $5 -- no more",
    "the end --finally -- came",
    "wait --what? 5 cats",
    "a log (see fig. 3)",
    "{{literal}} braces",
    "a /* comment",
    "scene 1: a street, scene 2: a house",
    "Level 5, boss: 2",
    "Steps 1-2-3 on a podium",
    "scheduler: a busy secretary, at a desk",
    "Size matters: big",
    "model 3 car",
    "seed 5 in a jar",
    "a sampler: chocolates, nuts",
    "guidance: a lighthouse, steering ships",
    "vae victis: gladiators",
]  # fmt: skip
BEFORE = ("", "cinematic, ", "Photo of ", "In the evening, ")
AFTER = ("", " in the rain", ", 4k, detailed")


@pytest.mark.parametrize(("text", "word"), FLAGS)
def test_a_flag_is_refused_at_its_column_with_the_word_that_is_used_here(
    problems_of: Problems, text: str, word: str
) -> None:
    (line,) = problems_of(f'{HEAD}prompt = "a cat {text}"\n')

    assert line.startswith("recipe.toml:5:17: scene[0].prompt: ")
    assert word in line


def test_a_whole_infotext_is_refused_setting_by_setting(problems_of: Problems) -> None:
    text = (
        "a cat\nNegative prompt: bad\n"
        "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512\n"
    )

    lines = problems_of(f'{HEAD}prompt = """{text}"""\n')

    places = [
        ("6:1", "negative_prompt"), ("7:1", "num_inference_steps"), ("7:12", "scheduler"),
        ("7:28", "guidance_scale"), ("7:42", "seeds of a [[scene]]"), ("7:51", "width and height"),
    ]  # fmt: skip
    assert len(lines) == len(places)
    for line, (place, word) in zip(lines, places, strict=True):
        assert line.startswith(f"recipe.toml:{place}: scene[0].prompt: ")
        assert word in line


def test_an_infotext_in_a_prompts_file_is_refused_line_by_line(
    problems_of: Problems, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a cat\nNegative prompt: bad\nSteps: 20, Seed: 5\n")

    lines = problems_of(f'{HEAD}prompts_file = "p.txt"\n')

    told = [line.split("prompts_file: ")[1].split(" ")[0] for line in lines]
    assert told == ["p.txt:2:1:", "p.txt:3:1:", "p.txt:3:12:"] or told == ["p.txt:2:", *told[1:]]


@pytest.mark.parametrize("text", ["a {b|c} # hi", "a {b|c}  // hi there"])
def test_a_comment_behind_alternatives_is_refused(problems_of: Problems, text: str) -> None:
    (line,) = problems_of(f'{HEAD}prompt = "{text}"\n')

    assert "is no comment here" in line


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", AFTER)
def test_plain_english_is_never_refused(before: str, after: str) -> None:
    for text in PROSE:
        notes = parse_template(f"{before}{text}{after}").notes
        assert not [note for note in notes if note.is_certain], text


@pytest.mark.parametrize(
    ("text", "offset", "told"),
    [
        ("{red|blue}}", 10, "has one } too many: take it out"),
        ("a {red|blue}} cat", 12, "has one } too many: take it out"),
        ("{{red|blue}", 0, "has one { too many: take it out"),
        ("a {{red|blue} cat", 2, "has one { too many: take it out"),
        ("{red|blue", 0, "has a { that is never closed"),
        ("}", 0, "has a } that nothing opened"),
        ("red|blue}", 8, "has a } that nothing opened"),
        ("{a|{b|c}", 0, "has a { that is never closed"),
    ],
)
def test_a_brace_too_many_is_named_itself(text: str, offset: int, told: str) -> None:
    with pytest.raises(InvalidPrompt, match=told) as caught:
        parse_template(text)

    assert caught.value.offset == offset


WORKFLOW = {"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20}}}
SETTINGS = {"samples_save": True, "sd_model_checkpoint": "x.safetensors"}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"prompt": "a cat", "steps": 20}, "steps is num_inference_steps"),
        (WORKFLOW, "a workflow of ComfyUI"),
        (SETTINGS, "the settings of A1111"),
        ([{"prompt": "a cat", "seed": 5}], "seed is seeds of a [[scene]]"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_no_prompt_and_no_file_of_prompts(
    problems_of: Problems, tmp_path: Path, document: object, told: str, indent: int | None
) -> None:
    written = json.dumps(document, indent=indent)
    for name in ("p.txt", "p.json"):
        (tmp_path / name).write_text(written)

    (as_prompt,) = problems_of(f"{HEAD}prompt = {json.dumps(written)}\n")
    (as_text,) = problems_of(f'{HEAD}prompts_file = "p.txt"\n')
    (as_json,) = problems_of(f'{HEAD}prompts_file = "p.json"\n')

    assert as_text.startswith("recipe.toml:5:16: scene[0].prompts_file: p.txt:1:1: is JSON")
    assert all(told in line for line in (as_prompt, as_text, as_json))
