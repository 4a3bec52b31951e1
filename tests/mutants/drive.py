"""Run mutmut in a copy of the project: ``drive.py SAMPLE SEED JOBS``; a sample of 0 is everything.

mutmut's own command takes names of changes, which only it knows, and no rules of what to leave out.
These are no faults of the code, by their kind, and aren't made:

- other words in a text of three words or more: it's told to people, nothing is decided by it;
- capitals in a name that takes either, such as that of an encoding;
- None where False stood, which is as false;
- ``zip`` without its ``strict``, and changes in an ``assert``: both only doubt what holds anyway;
- another type named in ``cast``, which does nothing when the code runs.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import libcst as cst
import mutmut.__main__ as mutmut
from mutmut.mutation import file_mutation, mutators
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.workers.isolation import ForkServerRunner

_PROSE = 3  # words
_ANY_CASE = {'"ascii"', '"latin-1"', '"sha256"', '"utf-8"'}
_every = mutmut.collect_source_file_mutation_data
_stats = PytestRunner.run_stats
_submit = ForkServerRunner.submit
_skips = file_mutation.MutationVisitor._skip_node_and_children


def changed_text(node: cst.BaseString) -> Iterable[cst.BaseString]:
    """Other texts, where they aren't words told to people."""
    if isinstance(node, cst.SimpleString) and len(node.value.split()) >= _PROSE:
        return
    for changed in mutators.operator_string(node):
        value = getattr(changed, "value", "")
        if value.lower() not in _ANY_CASE:
            yield changed


def changed_assignment(node: cst.Assign | cst.AnnAssign) -> Iterator[cst.CSTNode]:
    """The assignment of None, or of a text where None stood, but not of what is as false."""
    if node.value is None or not _is_name(node.value, "False"):
        yield from mutators.operator_assignment(node)


def changed_arguments(node: cst.Call) -> Iterator[cst.Call]:
    """The call without an argument, or with None for one, but for those without a say."""
    kept = [argument for argument in node.args if _is_idle(node, argument)]
    for changed in mutators.operator_arg_removal(node):
        pairs = list(zip(node.args, changed.args, strict=False))
        is_as_false = len(node.args) == len(changed.args) and any(
            _is_name(old.value, "False") and _is_name(new.value, "None") for old, new in pairs
        )
        is_kept = all(any(argument is one for one in changed.args) for argument in kept)
        if is_kept and not is_as_false:
            yield changed


def is_skipped(visitor: file_mutation.MutationVisitor, node: cst.CSTNode) -> bool:
    """Whether nothing is changed within a node."""
    return (
        isinstance(node, cst.Assert)
        or (isinstance(node, cst.Arg) and _is_strict(node))
        or _skips(visitor, node)
    )


def _is_idle(call: cst.Call, argument: cst.Arg) -> bool:
    name = call.func.value if isinstance(call.func, cst.Name) else ""
    return _is_strict(argument) or (name == "cast" and argument is call.args[0])


def _is_name(node: cst.CSTNode, name: str) -> bool:
    return isinstance(node, cst.Name) and node.value == name


def _is_strict(argument: cst.Arg) -> bool:
    return argument.keyword is not None and argument.keyword.value == "strict"


def run(sample: int, seed: str, jobs: int) -> None:
    """Make the changes and try some of them, the same ones for the same seed."""

    def chosen(*, mutant_names: tuple[str, ...]) -> Any:
        mutants, data = _every(mutant_names=mutant_names)
        mutants.sort(key=lambda one: random.Random(seed + one[1]).random())
        return mutants[: sample or None], data

    def stats_here(runner: PytestRunner, *, tests: Iterable[str]) -> int:
        # A process that a test starts runs elsewhere, where mutmut misses its table.
        os.environ.pop("MUTANT_UNDER_TEST")
        return _stats(runner, tests=tests)

    def quickest_first(runner: ForkServerRunner, name: str, tests: list[str], *limits: Any) -> None:
        _submit(runner, name, sorted(tests, key=state().duration_by_test.__getitem__), *limits)

    swapped = {
        mutators.operator_string: changed_text,
        mutators.operator_arg_removal: changed_arguments,
        mutators.operator_assignment: changed_assignment,
    }
    file_mutation.mutation_operators[:] = [
        (kind, swapped.get(operator, operator))
        for kind, operator in file_mutation.mutation_operators
    ]
    file_mutation.MutationVisitor._skip_node_and_children = is_skipped
    mutmut.collect_source_file_mutation_data = chosen
    PytestRunner.run_stats = stats_here
    ForkServerRunner.submit = quickest_first
    # All tests ran once by then, on the unchanged code, to see who calls what; they had to pass.
    ForkServerRunner.run_clean_tests = lambda runner, tests: 0
    mutmut._run((), jobs)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
