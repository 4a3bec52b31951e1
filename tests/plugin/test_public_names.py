"""What ``flowblend_plugin`` offers by name, without importing torch before it is needed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import flowblend_plugin
from flowblend_plugin import FlowBlendError, errors


@pytest.mark.parametrize("name", flowblend_plugin.__all__)
def test_every_public_name_is_there_and_explains_itself(name: str) -> None:
    assert inspect.getdoc(getattr(flowblend_plugin, name))


def test_no_name_imports_torch_before_it_is_used() -> None:
    code = (
        "import sys, flowblend_plugin as p; dir(p); "
        "from flowblend_plugin import StageSchedule, FlopsError; "
        "assert 'torch' not in sys.modules; "
        "from flowblend_plugin import *; assert 'torch' in sys.modules; "
        "assert set(p.__all__) <= set(globals())"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_in_foreground'"):
        flowblend_plugin.load_in_foreground  # noqa: B018


def test_the_error_tree_holds_and_draws_every_error_of_the_library() -> None:
    for module in pkgutil.walk_packages(flowblend_plugin.__path__, "flowblend_plugin."):
        importlib.import_module(module.name)
    ours = {
        error
        for error in FlowBlendError.__subclasses__()
        if error.__module__.startswith("flowblend_plugin")
    }
    assert {error.__module__ for error in ours} == {errors.__name__}
    for error in ours:
        (builtin,) = [base for base in error.__bases__ if base is not FlowBlendError]
        assert f"── {error.__name__} ({builtin.__name__})" in (errors.__doc__ or "")
        assert error.__name__ in flowblend_plugin.__all__
