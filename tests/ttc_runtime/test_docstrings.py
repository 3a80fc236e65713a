"""Examples in the runtime's docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import ttc_runtime

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ttc_runtime.__path__, "ttc_runtime.")
    if module.name != "ttc_runtime.zoo.train"  # a program
)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    space = {**vars(ttc_runtime), **vars(module)}
    result = doctest.testmod(module, extraglobs=space, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
