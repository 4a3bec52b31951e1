"""Whatever a recipe's text says, it is loaded or refused with a ``RecipeError``: never else."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from naughty import NAUGHTY
from thorough import examples, thorough

from flowblend_cli.errors import Problem, RecipeError
from flowblend_cli.models.bundled import bundled_recipes
from flowblend_cli.recipe.expand import checks
from flowblend_cli.recipe.loader import load_batch
from flowblend_cli.recipe.schema.json_schema import json_schema
from flowblend_cli.text import is_unsafe

INCLUDED = {
    "a.toml": '[defaults]\nheight = 64\n[[scene]]\nname = "a"\nprompt = "b"\n',
    "b.toml": "",
}
RECIPES = [path.read_text("utf-8") for path in bundled_recipes().values()]
MINIMAL = '[model]\npipeline = "sprites"\n\n[[scene]]\nname = "a"\nprompt = "b"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder, for batches small enough to make thousands of."""
    monkeypatch.setattr(checks, "MAX_JOBS", 60)
    for name, text in INCLUDED.items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def problems_of(path: Path, *options: str) -> tuple[Problem, ...]:
    """The problems that a recipe is refused with; none where it is loaded."""
    try:
        load_batch(path, options, settle=False)
    except RecipeError as error:
        return error.problems or (Problem("", None, None, "", "refused without a problem"),)
    return ()


def is_loaded_or_refused(folder: Path, text: str, *options: str) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(text.encode())
    for problem in problems_of(path, *options):
        assert problem.path
        assert problem.line is None or problem.line >= 1
        assert problem.column is None or problem.column >= 1
        assert not any(is_unsafe(character) for character in str(problem))


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # inf and nan are TOML too
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def leaves(schema: dict[str, Any]) -> dict[str, list[str]]:
    """The keys of every table that stands at a recipe's top."""
    found = {}
    for table, node in schema["properties"].items():
        item = node.get("items", node)
        named = item if "$ref" in item else item.get("additionalProperties", {})
        keys = schema["$defs"].get(str(named.get("$ref")).rpartition("/")[2], {})
        found[table] = sorted(keys.get("properties", {}))
    return found


TABLES = leaves(json_schema())
KEYS = st.sampled_from([(table, key) for table, keys in TABLES.items() for key in keys])
WORDS = st.sampled_from(
    [
        "LSL", "auto", "adaptive", "explore 3", "30-50 (+10)", "1-3", "up to 50", "sprites",
        "large", "small", "sde", "unipc", "./none", "owner/name", "a {b|c}", "{scene}-{seed}",
        "first_block",
        "wan2.1-t2v", "qwen-image", "mp4", "png", "draft", "final", "image.png", "L", "cpu",
        *(text for text in NAUGHTY.values() if len(text) < 400),
    ]
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(sorted({key for keys in TABLES.values() for key in keys} | {*TABLES})),
    st.text(max_size=5),
)
SCALARS = st.one_of(
    WORDS,
    st.text(max_size=8),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.floats(0, 1),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@thorough
@examples(40)
@given(st.data())
def test_a_recipe_with_mutations_is_loaded_or_refused(folder: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(RECIPES))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 12))
        new = data.draw(
            st.one_of(
                st.just(""),
                st.sampled_from(
                    ["[", "]", "{", "}", "=", '"', "'", "\n", "[[scene]]\n", "#", ".", ","]
                ),
                VALUES.map(to_toml),
                st.text(max_size=4),
            )
        )
        text = text[:start] + new + text[end:]

    is_loaded_or_refused(folder, text)


@thorough
@examples(40)
@given(KEYS, VALUES, st.lists(st.tuples(KEYS, VALUES), max_size=2))
@example(("matrix", "negative_prompt"), [], [])
@example(("sweep", "negative_prompt"), {}, [])
@example(("sweep", "seed"), {}, [(("sweep", "negative_prompt"), ["a", 1])])
def test_any_value_at_a_known_key_is_loaded_or_refused(
    folder: Path, key: tuple[str, str], value: Any, further: list[tuple[tuple[str, str], Any]]
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "model": {"pipeline": "sprites"},
        "scene": {"name": "a", "prompt": "b"},
    }
    for (table, name), each in [(key, value), *further]:
        tables.setdefault(table, {})[name] = each
    headers = {"scene": "[[scene]]", "presets": "[presets.mine]"}
    lines = []
    for table, keys in tables.items():
        lines.append(headers.get(table, f"[{table}]"))
        lines += [f"{to_toml(name)} = {to_toml(each)}" for name, each in keys.items()]

    is_loaded_or_refused(folder, "\n".join(lines))


@thorough
@examples(40)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_document_is_refused_or_loaded(folder: Path, document: dict[str, Any]) -> None:
    text = "\n".join(f"{to_toml(key)} = {to_toml(value)}" for key, value in document.items())

    is_loaded_or_refused(folder, text)


@thorough
@examples(40)
@given(st.lists(st.tuples(KEYS, VALUES | st.text()), min_size=1, max_size=3), st.booleans())
def test_any_option_is_applied_or_refused(
    folder: Path, options: list[tuple[tuple[str, str], Any]], as_toml: bool
) -> None:
    texts = [
        f"{'scene[0]' if table == 'scene' else table}.{json.dumps(key)}="
        + (to_toml(value) if as_toml else str(value))
        for (table, key), value in options
    ]

    is_loaded_or_refused(folder, MINIMAL, *texts)


FILES = ("a.toml", "b.toml", "sub/c.toml", "recipe.toml")
PARTS = st.tuples(
    st.lists(st.sampled_from([*FILES, "none.toml", "../a.toml", "sub", ""]), max_size=3),
    st.lists(
        st.sampled_from(
            [
                '[model]\npipeline = "sprites"\n',
                '[[scene]]\nname = "a"\nprompt = "b"\n',
                '[[scene]]\nname = "a"\nheigth = 3\n',
                '[[scene]]\nname = "b"\nprompt = "c"\nseeds = [1, -2]\n',
                '[scene]\nname = "b"\n',
                "[defaults]\nheight = 64\nwidth = 1.5\n",
                "defaults = 3\n",
                '[sweep.blend]\nstages = ["LSL", "X"]\n',
                '[sweep]\n"blend.stages" = "S"\nnum_inference_steps = ["3-5", 9]\n',
                '[blend]\nstages = "SSS"\n',
                '[presets.walking]\nnum_inference_steps = "9-3"\n',
                "not toml",
            ]
        ),
        max_size=3,
        unique_by=lambda part: part.partition("\n")[0],
    ),
)


@thorough
@examples(60)
@given(st.tuples(PARTS, PARTS, PARTS, PARTS))
def test_any_files_that_include_each_other_are_loaded_or_refused(
    folder: Path, parts: tuple[Any, ...]
) -> None:
    (folder / "sub").mkdir(exist_ok=True)
    texts = {}
    for name, (includes, tables) in zip(FILES, parts, strict=True):
        tables = sorted(tables, key=lambda table: table.startswith("["))
        texts[name] = f"include = {json.dumps(includes)}\n" + "".join(tables)
        (folder / name).write_text(texts[name], "utf-8")

    for problem in problems_of(folder / "recipe.toml"):
        lines = texts[str(Path(problem.path).relative_to(folder))].split("\n")
        assert problem.line is not None
        assert problem.column is not None
        rest = lines[problem.line - 1][problem.column - 1 :]
        key = re.search(r"(\w+)$", problem.location)
        if key and "unknown key" in problem.message:
            assert rest.startswith(key[1])


def corpus(kind: str) -> list[Any]:
    """The files of CPython's own tests of its TOML parser, where they are installed."""
    spec = importlib.util.find_spec("test")
    root = Path(spec.origin).parent if spec and spec.origin else Path()
    data = root / "test_tomllib" / "data" / kind
    found = sorted(data.rglob("*.toml")) if data.is_dir() else []
    missing = pytest.param(
        None, marks=pytest.mark.skip(reason="this Python comes without its own tests")
    )
    return [pytest.param(path, id=str(path.relative_to(data))) for path in found] or [missing]


@pytest.mark.parametrize("path", corpus("invalid"))
def test_no_invalid_toml_is_a_recipe(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_batch(path)

    (problem,) = caught.value.problems
    assert problem.line is not None
    assert problem.column is not None
    assert "TOML" in problem.message or "UTF-8" in problem.message or "empty" in problem.message


@pytest.mark.parametrize("path", corpus("valid"))
def test_valid_toml_that_is_no_recipe_is_refused_with_its_place(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_batch(path)

    assert all(problem.line and problem.column for problem in caught.value.problems)
