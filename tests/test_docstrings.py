"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

import detkit

MODULES = (
    "detkit",
    "detkit.evaluation.voc",
    *(f"detkit.ops.{name}" for name in ("anchors", "boxes", "coders", "matching", "nms", "roi")),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, extraglobs={"detkit": detkit})
    assert (failed, tried > 0) == (0, True)
