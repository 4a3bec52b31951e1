"""What only other programs read is told with its column; prose stays prose."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowblend_cli.jobs import Batch
from flowblend_cli.recipe.prompts.syntax import parse_template

Load = Callable[..., Batch]
Problems = Callable[..., list[str]]
HEAD = '[model]\npipeline = "sprites"\n[[scene]]\nname = "a"\n'

CERTAIN = [
    "<lora:add_detail:0.8>", "<lora:x>", "<lyco:x:1:0.5>", "<hypernet:x:1>", "<segment:face,0.6>",
    "<random:red|blue>", "<wildcard:colour>", "<alternate:a,b>", "<fromto[0.5]:a,b>", "<embed:x>",
    "<preset:big>", "<setvar[x]:y>", "<comment:x>", "<break>",
    "(word:1.3)", "(two words:0.8)", "(a (b) c:1.25)", "({a|b}:1.2)", "(word:.5)",
    "[from:to:0.5]", "[a cat:a dog:12]", "[:to:0.3]", "[from::10]", "embedding:easynegative",
    "embedding:dir/x.pt", "('a','b').blend(1,1)", "ADDCOL",
    "--w 64", "--ar 16:9", "--seed 7", "\u2014w 64", "--no cats",
]  # fmt: skip
LIKELY = [
    "((word))", "(((two words)))", "[word]", "[[word]]", "[{red|blue}]", "(word:2)", "(word: 1.3)",
    "BREAK", "AND", "word++", "(two words)++", "(two words)--", "word::2", "\\(word\\)", "{{a|b}}",
    "[cow|horse]", "[to:0.3]", "(sharp light)1.2", "MASK(0 0.5, 0 1)", "(50mm:1.8)",
]  # fmt: skip
PROSE = [
    "(smiling)", "a sign (at the left)", "at 10:30", "(16:9)", "(10:30)", "(John 3:16)", "a 4:3",
    "C++", "wait -- what", "wait--what", "a well-lit room", ":-) and <3", "a < b > c", "5 > 3",
    "$1.50 (about)", "50%", "brand and name", "x [1] y", "a -> b", "#1", "salt & pepper", "it: red",
    "no (really)", "{red|blue} and {0.5::a|b}", "{2$$ and $$a|b|c}", "A CAT AND A DOG", "e.g. (i)",
    "a 'quoted: thing'", "http://a.example/x", "<3", "<html>", "f(x)", "2 + 2",
    "[00:00-00:03] a wide shot", "[0:00] opening", "[10:30]", "SMPTE [01:02:03:04]", "x[0:1]",
    "volume [||||  ]", "STYLE(dark)", "SHIFT(Ctrl) key", "CUT(ting) board", "NOISE(loud)",
    "https://example.com/a_b__c__d?x=1", "my__file__v2.png", "a__b and c__d",
    'a mug with "__" and "__" on it',
]  # fmt: skip


@pytest.mark.parametrize("text", CERTAIN)
def test_what_is_certain_is_an_error_at_its_column(problems_of: Problems, text: str) -> None:
    (line,) = problems_of(f'{HEAD}prompt = """a cat, {text}, walking"""\n')

    assert line.startswith("recipe.toml:5:20: scene[0].prompt: ")
    assert "lint = false" in line


@pytest.mark.parametrize("text", LIKELY)
def test_what_is_likely_is_a_warning_at_its_column(batch_of: Load, text: str) -> None:
    written = text.replace("\\", "\\\\")
    (warning, *_) = batch_of(f'{HEAD}prompt = "a cat, {written}, walking"\n').warnings

    assert ":5:18: scene[0].prompt: " in warning or (text == "word::2" and ":5:22: " in warning)


@pytest.mark.parametrize("text", PROSE)
def test_prose_is_nothing_but_text(text: str) -> None:
    assert not parse_template(f"a cat, {text}, walking").notes


@pytest.mark.parametrize("text", ["[Ratio: 16:9]", "[FPS: 24]", "[Line: 42]", "AREA(51)"])
def test_labels_in_brackets_are_no_error(batch_of: Load, text: str) -> None:
    (job,) = batch_of(f'{HEAD}prompt = "a cat, {text}, walking"\n').jobs
    assert job.prompt == f"a cat, {text}, walking"


def test_a_line_that_is_a_comment_is_told(batch_of: Load) -> None:
    batch = batch_of(f'{HEAD}prompt = "a road\\n## Camera\\nslow pan"\n')

    assert batch.jobs[0].prompt == "a road\nslow pan"
    (warning,) = batch.warnings
    assert "'## Camera' is a comment, and is left out: write \\# to keep the line" in warning
    assert not batch_of(f'{HEAD}lint = false\nprompt = "a\\n# b\\nc"\n').warnings


def test_lint_takes_everything_as_text(batch_of: Load) -> None:
    batch = batch_of(f'{HEAD}prompt = "a (cat:1.3) [dog]"\nlint = false\n')

    assert batch.jobs[0].prompt == "a (cat:1.3) [dog]"
    assert not batch.warnings


def test_every_place_is_told_at_once_in_lines_and_escapes(problems_of: Problems) -> None:
    text = 'prompt = ["ok", """\\\n  caf\\u00e9\n  (a:1.2) <lora:b:1>""", \'x (b:0.5)\']\n'

    lines = problems_of(HEAD + text)

    assert [line.split(": ")[0] for line in lines] == [
        "recipe.toml:7:3", "recipe.toml:7:11", "recipe.toml:7:29",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[defaults]\nnegative_prompt = "bad, (ugly:1.4)"\n', "2:25: defaults.negative_prompt"),
        ('[presets.own]\nnegative_prompt = "(ugly:1.4)"\n', "2:19: presets.own.negative_prompt"),
        ('[sweep]\nnegative_prompt = ["ok", "a (b:1.4)"]\n', "2:29: sweep.negative_prompt[1]"),
    ],
)
def test_negative_prompts_are_read_too(problems_of: Problems, text: str, place: str) -> None:
    (line,) = problems_of(f'{text}{HEAD}prompt = "a cat"\n')

    assert line.startswith(f"recipe.toml:{place}: ")


def test_alternatives_in_a_negative_prompt_are_warned_about(batch_of: Load) -> None:
    text = f'{HEAD}prompt = "a cat"\nnegative_prompt = "{{red|blue}} __colour__"\n'

    first, second = batch_of(text).warnings

    assert "6:19: scene[0].negative_prompt: '{red|blue}' is text" in first or ":6:20:" in first
    assert "'__colour__' is text in a negative prompt" in second


def test_entries_of_wildcards_are_read_too(problems_of: Problems, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/w.txt").write_text("ok\nred (ball:1.3)\n")

    (line,) = problems_of(f'{HEAD}prompt = "a __w__"\n')

    assert line.startswith("recipe.toml:5:13: scene[0].prompt: wildcards/w.txt:2:5: '(ball:1.3)'")
