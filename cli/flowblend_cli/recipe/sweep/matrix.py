"""Variables of [matrix]: their checks, and the values that they take together in a prompt."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowblend_cli.recipe.schema.foreign_names import our_name
from flowblend_cli.recipe.schema.names import FIXED_FIELDS
from flowblend_cli.recipe.schema.sweep_tables import MatrixFields, SweepTable, Value
from flowblend_cli.recipe.schema.validation import Tables, written_as
from flowblend_cli.recipe.source.problems import Problems
from flowblend_cli.recipe.sweep.combinations import Combination, sweep_axes
from flowblend_cli.text import shorten
from flowblend_cli.utils.suggestions import closest, did_you_mean

Binding = Mapping[str, str]
_AXES = [info.alias or name for name, info in SweepTable.model_fields.items()]


def variable_names(tables: Tables, document: Mapping[str, Any]) -> list[str]:
    """List the names that may stand in braces; of a broken [matrix] all keys, to blame none twice.

    Args:
        tables: The recipe's tables.
        document: The recipe as parsed.
    """
    key = written_as("matrix", document)
    if tables.matrix is not None and key == "matrix" and not tables.matrix.broken:
        return list(tables.matrix.variables)
    written = document.get(key)
    return [str(key) for key in written] if isinstance(written, dict) else []


class Binder:
    """Gives variables their values.

    Args:
        matrix: The table; None has no variables.
    """

    def __init__(self, matrix: MatrixFields | None) -> None:
        variables = matrix.variables if matrix is not None else {}
        self._values = {name: [_text(v) for v in values] for name, values in variables.items()}
        self._is_zip = matrix is not None and matrix.mode == "zip"
        self._known: dict[tuple[frozenset[str], tuple[int, ...] | None], Sequence[Binding]] = {}

    @property
    def names(self) -> Collection[str]:
        """The variables."""
        return self._values.keys()

    def bind(self, combination: Combination, used: frozenset[str]) -> Sequence[Binding]:
        """List the values that some variables take together in one combination of settings.

        Args:
            combination: The combination.
            used: The variables; others multiply nothing.
        """
        if not used:
            return ({},)
        key = (used, combination.zipped)
        if key not in self._known:
            self._known[key] = list(self._bind(combination, [n for n in self._values if n in used]))
        return self._known[key]

    def _bind(self, combination: Combination, names: list[str]) -> Iterator[Binding]:
        lists = [self._values[name] for name in names]
        if not self._is_zip:
            together: Iterable[tuple[str, ...]] = itertools.product(*lists)
        else:
            numbers = combination.zipped or ()
            together = (tuple(values[number] for values in lists) for number in numbers)
        for values in dict.fromkeys(together):
            yield dict(zip(names, values, strict=True))

    def count(self, used: Collection[str]) -> int:
        """How often some variables multiply a prompt in all combinations of settings, at most."""
        lengths = [len(self._values[name]) for name in used if name in self._values]
        return max(lengths, default=1) if self._is_zip else math.prod(lengths)

    def find(self, text: str) -> frozenset[str]:
        """The variables in a negative prompt."""
        if not self._values or "{" not in text:
            return frozenset()
        return frozenset(match[1] for match in self._pattern().finditer(text) if match[1])

    def fill(self, text: str, binding: Binding) -> str:
        """A negative prompt with its variables' values; all else in it is itself.

        ``{{name}}`` is a literal ``{name}``, where ``name`` is a variable.
        """
        if not self._values or "{" not in text:
            return text
        return self._pattern().sub(lambda m: binding.get(m[1], m[0]) if m[1] else m[0][1:-1], text)

    def _pattern(self) -> re.Pattern[str]:
        names = "|".join(map(re.escape, self._values))
        return re.compile(rf"\{{\{{(?:{names})\}}\}}|\{{({names})\}}")


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_matrix(tables: Tables, problems: Problems) -> None:
    """Check that every key is an axis that [sweep] lacks, or a name that a variable can have."""
    if tables.matrix is None:
        return
    swept = sweep_axes(tables.sweep)
    for axis in sweep_axes(tables.matrix):
        if axis in swept:
            message = f"[sweep] varies {axis} already: keep it in one of the two tables"
            problems.add(("matrix", axis), message, at="key", related=("sweep", "matrix"))
    for name in tables.matrix.variables:
        problem = _name_problem(name)
        if problem:
            problems.add(("matrix", name), problem, at="key", related=("matrix",))


def _name_problem(name: str) -> str | None:
    """What is wrong with the name of a variable."""
    if name in FIXED_FIELDS:
        return "is a field of file names already: take another name"
    if not name.isidentifier():
        return (
            "is neither a setting that [sweep] can vary nor the name of a variable, which has "
            f"letters, digits and _{did_you_mean(name, _AXES)}"
        )
    return None


def check_used(tables: Tables, used: Collection[str], problems: Problems) -> None:
    """Check that every variable stands in a prompt: one that doesn't is misspelt somewhere.

    Args:
        tables: The recipe's tables.
        used: The variables that stand in prompts.
        problems: Where problems go.
    """
    for name in tables.matrix.variables if tables.matrix is not None else ():
        if name not in used and _name_problem(name) is None:
            ours = our_name(name)
            meant = ours if ours in _AXES else closest(name, _AXES, cutoff=0.8)
            hint = f"did you mean the setting {meant!r}?" if meant else "or remove it"
            message = f"stands in no prompt: write {{{shorten(name)}}} in one, {hint}"
            problems.add(("matrix", name), message, at="key", related=("matrix", "scene"))
