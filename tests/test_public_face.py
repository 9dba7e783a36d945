"""What is public is documented: names of `tokenshard`, and the methods and properties that one reaches from them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import tokenshard

PUBLIC = {name: getattr(tokenshard, name) for name in tokenshard.__all__}


def reached() -> dict[str, Any]:
    """Public names, the classes that public functions and methods return, and all their public members."""
    found: dict[str, Any] = {}
    waiting = list(PUBLIC.items())
    while waiting:
        name, value = waiting.pop()
        if name in found or not getattr(value, "__module__", "tokenshard").startswith("tokenshard"):
            continue
        found[name] = value
        waiting += members(name, value) if inspect.isclass(value) else returned(value)
    return found


def members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Methods and properties that a class defines or inherits from tokenshard, as far as they are public."""
    for member, value in inspect.getmembers_static(cls):
        function = (
            getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
        )
        if not member.startswith("_") and inspect.isfunction(function):
            yield f"{name}.{member}", function


def returned(function: Any) -> Iterator[tuple[str, Any]]:
    """The class of tokenshard that a function says it returns."""
    annotation = str(inspect.signature(function).return_annotation).strip("'").split("[")[0]
    for part in annotation.split(" | "):
        cls = inspect.unwrap(function).__globals__.get(part)
        if inspect.isclass(cls) and cls.__module__.startswith("tokenshard"):
            yield cls.__name__, cls


def documented(name: str, value: Any) -> bool:
    """Whether it, or what it overrides, has a docstring."""
    text = inspect.getdoc(value) or ""
    if not text and "." in name:
        owner, _, member = name.rpartition(".")
        cls = REACHED.get(owner)
        bases = cls.__mro__[1:] if inspect.isclass(cls) else ()
        text = next((inspect.getdoc(getattr(base, member)) or "" for base in bases if hasattr(base, member)), "")
    return bool(text.strip()) and not text.startswith(("Create and return", "Initialize self"))


REACHED = reached()


@pytest.mark.parametrize("name", sorted(REACHED))
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert documented(name, REACHED[name]), name


@pytest.mark.parametrize("name", sorted(name for name in REACHED if "." not in name))
def test_every_public_class_and_function_says_more_than_its_name(name: str) -> None:
    text = inspect.getdoc(REACHED[name]) or ""
    assert len(text.split()) >= 5, name


def test_exactly_the_listed_names_are_public() -> None:
    assert set(tokenshard.__all__) == set(tokenshard._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tokenshard.nothing  # noqa: B018
