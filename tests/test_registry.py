"""Registries: lookup by name, lazy import, and errors that list the names."""

import sys

import pytest

from pdmd import teachers
from pdmd.registry import Registry


@pytest.fixture
def registry():
    return Registry("shape", {"ordered": "collections:OrderedDict", "keys": "builtins:dict.keys"})


def test_items_are_registered_and_removed(registry):
    @registry.register("square")
    class Square:
        pass

    assert registry["square"] is registry.get("square") is Square
    assert registry.names() == tuple(registry) == ("ordered", "keys", "square")
    assert "square" in registry and len(registry) == 3
    registry.remove("square")
    assert "square" not in registry
    with pytest.raises(ValueError, match="unknown shape 'square'"):
        registry.remove("square")


def test_built_in_items_are_imported_on_first_access(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    lazy = Registry("poem", {"zen": "this:s"})
    assert lazy.names() == ("zen",) and "zen" in lazy and "this" not in sys.modules
    assert lazy["zen"].startswith("Gur Mra")
    assert "this" in sys.modules


def test_built_in_items_may_be_attributes_of_attributes(registry):
    assert registry["keys"]({"a": 1}) == {"a": 1}.keys()


def test_a_registered_name_cannot_be_replaced(registry):
    with pytest.raises(ValueError, match="the shape name 'ordered' is already registered"):
        registry.register("ordered")


def test_unknown_names_list_the_known_and_suggest_the_nearest(registry):
    with pytest.raises(ValueError, match="unknown shape 'order': did you mean 'ordered'. reg"):
        registry["order"]
    with pytest.raises(ValueError, match="unknown shape 'xyz': registered: keys, ordered"):
        registry["xyz"]


def test_unknown_teachers_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        teachers.get("digit")
