"""Templates that people bring from Dynamic Prompts, held against the library of that name."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblend_cli.recipe.prompts.sample import draw_sample
from flowblend_cli.recipe.prompts.template import MANY
from flowblend_cli.recipe.prompts.wildcards import Wildcards

FILES = {
    "colour.txt": "# colours\nred\nblue\n\n{light|dark} green\n",
    "coat.txt": "wool\nlinen\n",
    "artists/European Art/nouveau.txt": "Mucha\nKlimt, Gustav\n",
    "season.txt": "in ${season:summer} and ${season:winter}\n",
    "nested.txt": "a __coat__ coat\nplain\n",
    "lists.yaml": (
        "clothes:\n  - hat  # a comment\n  - 2::scarf\nplaces:\n  far:\n    - 'sea'\n    - |\n"
        "      a hill\n      by the lake\n  near: home\n"
    ),
    "deep/more.json": json.dumps({"mood": ["calm", {"text": "wild", "weight": 3}]}),
}
NAMES = [
    "colour", "coat", "artists/European Art/nouveau", "nouveau", "nested", "co*", "**/nouveau",
    "clothes", "places/*", "deep/mood", "season", "season(season=spring)", "?oat", "c[ao]*t",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dynamic")
    for name, text in FILES.items():
        path = root / "wildcards" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Callable[[str], set[str]]:
    """Every prompt of a template, as the library makes them."""
    generators = pytest.importorskip("dynamicprompts.generators")
    manager = pytest.importorskip("dynamicprompts.wildcards").WildcardManager

    def prompts(template: str) -> set[str]:
        made = generators.CombinatorialPromptGenerator(
            wildcard_manager=manager(folder / "wildcards"), ignore_whitespace=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {squash(str(prompt)) for prompt in made.generate(template, 100_000)}

    return prompts


def squash(text: str) -> str:
    return " ".join(text.split())


def ours(folder: Path, template: str) -> list[str]:
    found = Wildcards(folder, "wildcards").parse(template)
    prompts = [squash(prompt.text) for prompt in found.prompts()]
    assert len(prompts) == found.count
    return prompts


class Grammar:
    """Writes templates at random, the same ones for each seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words = iter(range(1000))
        self.variables: list[str] = []

    def template(self) -> str:
        name = f"v{next(self.words)}"
        begin = ""
        if self.random.random() < 0.3:
            begin = f"${{{name}={self.sequence(2)}}} "
            self.variables.append(name)
        return begin + self.sequence(0)

    def sequence(self, depth: int) -> str:
        parts = self.random.choices(
            [self.word, self.group, self.several, self.wildcard, self.use],
            [6, 3, 2, 2, 1],
            k=self.random.randint(1, 3),
        )
        return " ".join(part(depth) for part in parts)

    def word(self, depth: int) -> str:
        return self.random.choice(["w{}", "x{},", "Y{}."]).format(next(self.words))

    def use(self, depth: int) -> str:
        if not self.variables:
            return f"${{none:{self.word(depth)}}}"
        return f"${{{self.random.choice(self.variables)}}}"

    def wildcard(self, depth: int) -> str:
        sampler = self.random.choice(["", "", "", "!"])
        return f"__{sampler}{self.random.choice(NAMES)}__"

    def options(self, depth: int) -> list[str]:
        inner = self.word if depth > 1 else self.sequence
        number = self.random.randint(2, 3)
        return [f"{self.word(depth)} {inner(depth + 1)}" for _ in range(number)]

    def group(self, depth: int) -> str:
        weight = self.random.choice([lambda: "", lambda: f"{self.random.randint(1, 3)}::",
                                     lambda: "0.5:: "])  # fmt: skip
        space = self.random.choice(["", " ", "\n  "])
        options = [f"{space}{weight()}{option}" for option in self.options(depth)]
        if self.random.random() < 0.2:
            options.append("")
        return "{" + self.random.choice(["", "", "!"]) + "|".join(options) + "}"

    def several(self, depth: int) -> str:
        bound = self.random.choice(["2", "1-2", "-2", "1-", "0-1", "2-1", "3", "9"])
        separator = self.random.choice(["", " and $$", ", $$", " | $$", "-$$"])
        options = self.options(2)
        if self.random.random() < 0.3:
            # Their "1-" means one of a lone file's entries, against their own documentation.
            bound = bound if bound != "1-" else "2"
            options = [f"__{self.random.choice(NAMES[:3])}__"]
        return f"{{{bound}$${separator}{'|'.join(options)}}}"


def test_what_a_template_stands_for_is_what_the_library_makes_of_it(
    folder: Path, theirs: Callable[[str], set[str]]
) -> None:
    compared = 0
    for seed in range(400):
        template = Grammar(seed).template()
        if Wildcards(folder, "wildcards").parse(template).count > 300:
            continue
        compared += 1
        assert set(ours(folder, template)) == theirs(template), (seed, template)
    assert compared > 250


@pytest.mark.parametrize(
    ("template", "prompts"),
    [
        ("a {0.5::red|blue} ball", ["a red ball", "a blue ball"]),
        ("{2$$red|white|blue}", ["red,white", "red,blue", "white,red", "white,blue", "blue,red",
                                 "blue,white"]),
        ("{2$$ and $$a|b}", ["a and b", "b and a"]),
        ("{1-2$$; $$a|b}", ["a", "b", "a; b", "b; a"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{9$$a|b}", ["a,b", "b,a"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{{a|b}|c}", ["a", "b", "c"]),
        ("{a|{b|c}}", ["a", "b", "c"]),
        ("{a|{b|c}} {{x}}", ["a {x}", "b {x}", "c {x}"]),
        ("__artists/European Art/nouveau__", ["Mucha", "Klimt, Gustav"]),
        ("__nouveau__", ["Mucha", "Klimt, Gustav"]),
        ("{2$$__coat__}", ["wool,linen", "linen,wool"]),
        ("{2$$__coat__|__coat__}", ["wool,linen", "linen,wool"]),
        ("__{coat|clothes}__", ["wool", "linen", "hat", "scarf"]),
        ("${g=coat} __${g}__", ["wool", "linen"]),
        ("${g=!{coat|clothes}} ${g}: __${g}__",
         ["coat: wool", "coat: linen", "clothes: hat", "clothes: scarf"]),
        ("__places/far__", ["sea", "a hill by the lake"]),
        ("__season(season={spring|fall})__", [
            "in spring and spring", "in spring and fall", "in fall and spring",
            "in fall and fall",
        ]),
        ("${season=fall} __season__", ["in fall and fall"]),
        ("${x={a|b}} ${x} ${x}", ["a a", "a b", "b a", "b b"]),
        ("${x=!{a|b}} ${x} ${x}", ["a a", "b b"]),
        ("${x=!{a|b}}${y=!{c|d}} ${x}${y}${x}", ["aca", "ada", "bcb", "bdb"]),
        ("${x=a} ${x?=b} ${x}", ["a"]),
        ("${x?=b} ${x}", ["b"]),
        ("${x:a {b|c}} d", ["a b d", "a c d"]),
        ("%{photo of ... by night$${a cat|a dog}}", ["photo of a cat by night",
                                                     "photo of a dog by night"]),
        ("{@a|b} and {@c|d}", ["a and c", "b and d"]),
        ("{x|y} {@a|b} {@c|d}", ["x a c", "x b d", "y a c", "y b d"]),
        ("{~a|b} __~coat__", ["a wool", "a linen", "b wool", "b linen"]),
        ("# a note\na {red\n  # |green\n  |blue}\n// more\n", ["a red", "a blue"]),
        ("a /* not this */ ball", ["a ball"]),
        ("a ball #2 in C# // or not", ["a ball #2 in C# // or not"]),
        ("costs ${5|10}, 100%{!|?}", ["costs $5, 100%!", "costs $5, 100%?", "costs $10, 100%!",
                                      "costs $10, 100%?"]),
    ],
)  # fmt: skip
def test_each_form_stands_for_these_prompts_in_this_order(
    folder: Path, template: str, prompts: list[str]
) -> None:
    assert ours(folder, template) == prompts


def test_weights_decide_what_is_drawn_and_never_what_there_is(folder: Path) -> None:
    wildcards = Wildcards(folder, "wildcards")
    small = {"t": wildcards.parse("{9::often|rare} {a|b|c|d|e|f|g|h|i|j}")}
    drawn = [p.text for s in range(40) for _, p in draw_sample(small, 5, s)]
    assert 130 < sum("often" in text for text in drawn) < 190  # of 200, where 100 were without

    large = {"t": wildcards.parse("{9::often|rare} " + "{a|b|c|d|e|f|g|h|i|j} " * 6)}
    drawn = [p.text for _, p in draw_sample(large, 300, 1)]
    assert 240 < sum("often" in text for text in drawn) < 297
    assert ours(folder, "{0::a|b|c}") == ["b", "c"]


def test_several_of_very_many_can_be_drawn_and_are_never_the_same(tmp_path: Path) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards/w.txt").write_text("".join(f"entry{n}\n" for n in range(1000)))
    template = Wildcards(tmp_path, "wildcards").parse("a {3$$ $$__w__}")

    drawn = [prompt.text.split() for _, prompt in draw_sample({"t": template}, 200, 3)]

    assert template.count == MANY
    assert all(len(set(words)) == 4 for words in drawn)
    assert len({tuple(words) for words in drawn}) == 200


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.yaml", "a: [1, {b: c}]\n", "wildcards/bad.yaml:1:8: expected a list of texts"),
        ("bad.yaml", "a: b: c\n", "wildcards/bad.yaml is no YAML: mapping values are not allowed"),
        ("bad.yaml", "&a [*a]\n", "expected a list of texts"),
        ("bad.json", "{", "wildcards/bad.json is no JSON"),
        ("bad.json", "[" * 20_000, "wildcards/bad.json is no JSON"),
        ("bad.yaml", "[" * 500, "wildcards/bad.yaml is no YAML"),
        ("bad.yaml", "x" * 2_000_000, "wildcards/bad.yaml is larger than the limit of 512 KiB"),
        ("bad.yaml", "x:\n  - ok\n  - '{open'\n", "wildcards/bad.yaml:3:6: has a { that"),
        ("bad.json", '{"x": ["{open"]}', "wildcards/bad.json: has a { that"),
        ("x.txt", "ok\n  a {open\n", "wildcards/x.txt:2:5: has a { that"),
        ("x.txt", "2::a {open\n", "wildcards/x.txt:1:6: has a { that"),
    ],
)
def test_a_list_that_can_not_be_read_is_told_with_its_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / name).write_text(text)

    with pytest.raises(ValueError, match=r".") as caught:
        Wildcards(tmp_path, "wildcards").parse("a __x__")

    assert message in str(caught.value)


@pytest.mark.parametrize("text", [
    "${a=xx}" + "".join(f"${{{b}=${{{a}}}${{{a}}}}}" for a, b in zip("abcdefghijklmnopqrst",
                        "bcdefghijklmnopqrstu", strict=True)) + "${u}",
    "${a=${b}}${b=${a}}${a}",
    "${a=!${a}} x",
    "${a=!{" + "|".join(map(str, range(400))) + "}}${b=!" + "{0|1}" * 20 + "}${a}${b}",
])  # fmt: skip
def test_variables_that_never_end_are_refused_at_once(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"has no value|too often|more than 10,000"):
        Wildcards(tmp_path, "wildcards").parse(text)
