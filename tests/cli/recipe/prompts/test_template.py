"""The syntax of prompts, wildcard files and samples, by themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from thorough import examples, thorough

from flowblend_cli.recipe.prompts.sample import MOST_RANKED, draw_sample
from flowblend_cli.recipe.prompts.syntax import escape, parse_template
from flowblend_cli.recipe.prompts.template import (
    MANY,
    Template,
)
from flowblend_cli.recipe.prompts.wildcards import Wildcards
from flowblend_cli.recipe.source.limits import MAX_PROMPT, MAX_WILDCARD_DEPTH


def texts(template: Template) -> list[str]:
    return [prompt.text for prompt in template.prompts()]


@pytest.fixture
def wildcards(tmp_path: Path) -> Wildcards:
    (tmp_path / "wildcards/people").mkdir(parents=True)
    files = {
        "colour": "# colours\nred\n\n  blue  # not a comment\n",
        "shade": "{dark|light} __colour__\nplain\n",
        "people/job": "\ufeffsailor\r\nbaker\r\n",
    }
    for name, text in files.items():
        (tmp_path / f"wildcards/{name}.txt").write_text(text, "utf-8", newline="")
    return Wildcards(tmp_path, "wildcards", ("pace",))


def test_a_wildcard_stands_for_every_line_of_its_file_in_order(wildcards: Wildcards) -> None:
    assert texts(wildcards.parse("a __colour__ {ball|__people/job__}")) == [
        "a red ball",
        "a red sailor",
        "a red baker",
        "a blue  # not a comment ball",
        "a blue  # not a comment sailor",
        "a blue  # not a comment baker",
    ]


def test_entries_may_hold_alternatives_wildcards_and_variables(wildcards: Wildcards) -> None:
    template = wildcards.parse("__shade__ {pace}")

    assert template.count == 5
    assert texts(template)[0] == "dark red {pace}"
    assert texts(template)[-1] == "plain {pace}"
    assert next(template.prompts()).fill({"pace": "__colour__ {x}"}) == "dark red __colour__ {x}"


def test_underscores_are_literal_where_they_name_nothing_or_are_doubled(
    wildcards: Wildcards,
) -> None:
    text = "____colour____ snake_case a __ b __colour and _____"

    assert texts(wildcards.parse(text)) == ["__colour__ snake_case a __ b __colour and ___"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__color__", "did you mean __colour__?"),
        ("__zzz__", "there are colour, people/job, shade; write ____ for a literal __"),
        ("__../colour__", "is no wildcard"),
        ("__/etc/passwd__", "is no wildcard"),
        ("__a\\b__", "is no wildcard"),
        ("__people/../colour__", "is no wildcard"),
        (f"__{'x' * 300}__", "up to 100 letters"),
        ("__init__.py", "write ____ for a literal __"),
        ("{pce}", "did you mean {pace}?"),
        ("{__colour__}", "offers no alternatives"),
        ("{a|{pce}}", "did you mean {pace}?"),
        ("${nobody}", "has no value: write ${nobody=...} before it"),
        ("{$$a|b}", "$$ without a number: write {2$$a|b|c}"),
        ("{a$$b|c}", "$$ without a number: write {2$$a|b|c}"),
        ("{0::a|0::b}", "all have the weight 0"),
        ("__colour(x)__", "there is no file 'wildcards/colour(x).txt'"),
        ("__{pace}__", "by a variable of [matrix]"),
        ("{a|" * 17 + "b" + "}" * 17, "deeper than the limit of 16"),
        ("{% if x %}", "{{ and }} for literal braces"),
        ("${a.b}", "{{ and }} for literal braces"),
        ("{seed.__class__}", "{{ and }} for literal braces"),
        ("{0}", "{{ and }} for literal braces"),
        ("{pace!r}", "{{ and }} for literal braces"),
        ("{pace:>1000000}", "{{ and }} for literal braces"),
    ],
)
def test_what_stands_for_nothing_is_refused_with_the_remedy(
    wildcards: Wildcards, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wildcards.parse(text)


def test_jinja_is_literal_text_with_its_braces_halved(wildcards: Wildcards) -> None:
    assert texts(wildcards.parse("{{ jinja }} $HOME %s")) == ["{ jinja } $HOME %s"]


def test_errors_inside_a_file_name_its_lines(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/bad.txt").write_text("fine\n{open\n# note\n  {only}\n", "utf-8")

    with pytest.raises(ValueError, match="never closed") as caught:
        Wildcards(tmp_path, "wildcards").parse("__bad__")

    assert "wildcards/bad.txt:2:1: has a { that is never closed" in str(caught.value)
    assert "wildcards/bad.txt:4:3: has {only}" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no entry"),
        (b"# only a comment\n", "has no entry"),
        (b"fine\n\xff\n", "wildcards/w.txt:2: not UTF-8"),
        (b"x" * (4 * 1024 * 1024 + 1), "limit of 4 MiB"),
        (b"a\n" * 100_001, "limit of 100,000"),
        (b"__w__", "stands inside itself: __w__ -> __w__"),
    ],
    ids=["empty", "comment", "latin", "large", "long", "circle"],
)
def test_files_that_can_not_be_used_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/w.txt").write_bytes(data)

    with pytest.raises(ValueError, match=re.escape(message)):
        Wildcards(tmp_path, "wildcards").parse("__w__")


def test_wildcards_nest_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    for depth in range(300):
        (tmp_path / f"wildcards/w{depth}.txt").write_text(f"__w{depth + 1}__ x")
    (tmp_path / "wildcards/w300.txt").write_text("end")

    found = Wildcards(tmp_path, "wildcards")
    assert texts(found.parse(f"__w{301 - MAX_WILDCARD_DEPTH}__")) == ["end x x x x"]
    for name in (f"w{300 - MAX_WILDCARD_DEPTH}", "w0"):
        with pytest.raises(ValueError, match=f"limit is {MAX_WILDCARD_DEPTH}"):
            Wildcards(tmp_path, "wildcards").parse(f"__{name}__")


@pytest.mark.parametrize("folder", ["..", "../wildcards", "/etc", "~", "a\0b", "x" * 5000, "link"])
def test_a_folder_outside_of_the_recipes_is_refused(tmp_path: Path, folder: str) -> None:
    inside = tmp_path / "recipes"
    inside.mkdir()
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/w.txt").write_text("secret")
    (inside / "link").symlink_to(tmp_path / "wildcards")

    with pytest.raises(ValueError, match=r"isn't inside|control characters|can't be looked up"):
        Wildcards(inside, folder).parse("__w__")


def test_a_bomb_of_wildcards_ends_at_the_limit_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    for depth in range(4):
        (tmp_path / f"wildcards/w{depth}.txt").write_text(f"__w{depth + 1}__" * 500 + "\nx\n")
    (tmp_path / "wildcards/w4.txt").write_text("{a|}\nb")
    template = Wildcards(tmp_path, "wildcards").parse("__w0__")

    assert template.count == MANY
    with pytest.raises(ValueError, match=f"{MAX_PROMPT:,} characters"):
        template.draw(lambda choice: 0)


# Templates of every kind of part.
LITERALS = st.text(st.sampled_from("ab _{}|"), max_size=6).map(escape)
GROUPS = st.lists(LITERALS, min_size=2, max_size=3).map(
    lambda options: "{" + "|".join(option.replace("|", "/") for option in options) + "}"
)
TEMPLATES = st.lists(st.one_of(LITERALS, GROUPS, st.just("__w__"), st.just("{v}")), max_size=4).map(
    " ".join
)


class _Files(Wildcards):
    """Wildcards of two entries, without a disk."""

    def __init__(self) -> None:
        super().__init__(Path(), "wildcards", ("v",))
        self._known["w"] = parse_template("{one|two {{|x}").parts[0]  # type: ignore[assignment]


@thorough
@examples(60)
@given(st.text())
def test_reading_a_prompt_never_fails_but_with_a_value_error(text: str) -> None:
    try:
        template = _Files().parse(text)
    except ValueError:
        return
    assert len(texts(template)) == template.count


@thorough
@examples(60)
@given(st.lists(st.sampled_from(["{", "}", "|", "__", "_", "w", "v", "a", "{v}", "__w__", "{{"])))
def test_pieces_of_syntax_in_any_order_are_read_or_refused(pieces: list[str]) -> None:
    try:
        template = _Files().parse("".join(pieces))
    except ValueError:
        return
    if template.count < 1000:
        assert len(texts(template)) == template.count


@thorough
@examples(60)
@given(TEMPLATES)
def test_the_count_is_that_of_the_prompts_with_wildcards_and_variables(text: str) -> None:
    template = _Files().parse(text)

    prompts = list(template.prompts())

    assert len(prompts) == template.count
    assert prompts == [template.at(index) for index in range(template.count)]
    assert template.variables == frozenset().union(*(prompt.variables for prompt in prompts))


@thorough
@examples(60)
@given(st.text())
def test_an_escaped_text_is_itself(text: str) -> None:
    assert texts(_Files().parse(escape(text))) == [text]


@thorough
@examples(60)
@given(st.lists(TEMPLATES, min_size=1, max_size=3, unique=True), st.integers(0, 9), st.data())
def test_a_sample_is_distinct_and_a_part_of_all(
    written: list[str], seed: int, data: st.DataObject
) -> None:
    templates = {text: _Files().parse(text) for text in written}
    every = dict.fromkeys(text for template in templates.values() for text in texts(template))
    number = data.draw(st.integers(1, len(every)))

    drawn = [prompt.text for _, prompt in draw_sample(templates, number, seed)]

    assert len(drawn) == number == len(set(drawn))
    assert drawn == [text for text in every if text in drawn]
    if number < len(every):
        larger = [prompt.text for _, prompt in draw_sample(templates, number + 1, seed)]
        assert set(drawn) < set(larger)


def test_a_sample_is_the_same_on_every_machine() -> None:
    template = parse_template("{a|b|c|d} {1|2|3|4}")

    assert [prompt.text for _, prompt in draw_sample({"t": template}, 4, 7)] == SMALL
    large = {"t": parse_template(" ".join(["{a|b|c|d|e|f|g|h|i|j}"] * 6))}
    assert [prompt.text for _, prompt in draw_sample(large, 3, 7)] == LARGE


# Written once from the algorithm's first run: whoever changes it renders other prompts.
SMALL = ["a 3", "b 1", "c 1", "d 2"]
LARGE = ["i b c e e a", "g a c c f e", "j j d b h g"]


@pytest.mark.parametrize("places", [2, 4])
def test_a_new_entry_takes_the_place_of_few(places: int) -> None:
    entries = [f"entry{number}" for number in range(40)]

    def drawn(options: list[str]) -> set[str]:
        text = " ".join(["{" + "|".join(options) + "}"] * places)
        template = parse_template(text)
        assert (template.count > MOST_RANKED) == (places == 4)
        return {prompt.text for _, prompt in draw_sample({text: template}, 100, 1)}

    before = drawn(entries)

    assert len(before) == 100
    assert drawn(entries[::-1]) == before
    assert len(drawn([*entries[:20], "new", *entries[20:]]) & before) >= 75


def test_a_large_sample_is_distinct_and_knows_when_there_are_fewer() -> None:
    few = parse_template("{a|aa}" * 40)

    assert few.count > 10**12
    assert len({prompt.text for _, prompt in draw_sample({"few": few}, 10, 1)}) == 10
    with pytest.raises(ValueError, match=r"more than the \d+ different prompts that were found"):
        draw_sample({"few": few}, 42, 1)


def test_more_than_there_are_can_not_be_drawn() -> None:
    with pytest.raises(ValueError, match="sample = 3 is more than the 2 different prompts"):
        draw_sample({"t": parse_template("{a|b}")}, 3, 1)
