from __future__ import annotations

import json
from typing import Any

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from flowblend_cli.utils.toml_positions import KeyPath, Position, check_nesting, format_path, scan

TEXT = '''\
# a comment with [brackets] = and "quotes"
top . "dotted.key" = 1
[recipe]
name = """x
"y"""" # after
when = 1979-05-27 07:32:00
[[scene]]
name = 'first'
list = [1, [2, "]"], # ] in a comment
 { a = 1, b.c = "}" },
]
[[scene]]
[scene.inner]
z = 1
[presets."fast animal".x]
"num" = 3
'''


def at(line: int, column: int) -> Position:
    return Position(line, column)


def test_keys_and_values_of_every_form_are_found() -> None:
    positions = scan(TEXT)

    assert positions.key(("top", "dotted.key")) == at(2, 7)
    assert positions.value(("top", "dotted.key")) == at(2, 22)
    assert positions.value(("recipe", "name")) == at(4, 8)
    assert positions.value(("recipe", "when")) == at(6, 8)
    assert positions.key(("scene", 0, "name")) == at(8, 1)
    assert positions.value(("scene", 0, "list", 1, 1)) == at(9, 16)
    assert positions.value(("scene", 0, "list", 2, "b", "c")) == at(10, 17)
    assert positions.key(("scene", 1, "inner", "z")) == at(14, 1)
    assert positions.value(("presets", "fast animal", "x", "num")) == at(16, 9)


def test_a_path_that_is_not_in_the_text_stands_at_the_table_around_it() -> None:
    positions = scan(TEXT)

    assert positions.value(("scene", 1, "missing")) == at(12, 1)
    assert positions.value(("nowhere",)) == at(1, 1)


def test_paths_are_written_as_people_write_them() -> None:
    assert format_path(("scene", 1, "num_inference_steps")) == "scene[1].num_inference_steps"
    assert format_path(("sweep", "blend.stages", 0)) == 'sweep."blend.stages"[0]'


def test_nesting_is_counted_outside_of_strings_and_comments_only() -> None:
    deep = "[" * 40
    assert check_nesting(f'a = "{deep}"\n# {deep}\nb = """{deep}"""\nc = \'{deep}\'') is None
    assert check_nesting("x = 1\na = " + deep) == at(2, 37)
    assert check_nesting("[" + ".".join("a" * 40) + "]") is not None


names = st.text("ab.\"' \\é", max_size=4)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text("a\"'\\#[]{}=,\n.", max_size=6)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[ " + ", ".join(to_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def paths_of(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    found = {path} if path else set()
    return found.union(*(paths_of(item, (*path, key)) for key, item in items))


@settings(max_examples=80)
@given(
    st.dictionaries(names, values, max_size=3),
    st.lists(st.dictionaries(names, values, max_size=2), max_size=2),
)
def test_every_path_of_any_document_is_found_at_its_own_value(
    table: dict[str, Any], scenes: list[dict[str, Any]]
) -> None:
    lines = [f"[table]  # {table!r}".replace("\n", " ")]
    lines += [f"{json.dumps(key)} = {to_toml(value)}" for key, value in table.items()]
    for scene in scenes:
        lines += ["[[scene]]", *(f"{json.dumps(k)} = {to_toml(v)}" for k, v in scene.items())]
    text = "\n".join(lines)

    document = tomli.loads(text)
    positions = scan(text)

    assert set(positions.values) == paths_of(document)
    for path in paths_of(document):
        line, column = (lambda p: (p.line, p.column))(positions.value(path))
        value: Any = document
        for part in path:
            value = value[part]
        if isinstance(value, (int, str)):
            rest = "\n".join(text.split("\n")[line - 1 :])[column - 1 :]
            assert rest.startswith(to_toml(value))
