"""What is public is documented: names of `tokenshard` and of docs/api.md, and the members reached from them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest

import tokenshard

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
PAGE = {path.removeprefix("tokenshard."): locate(path) for path in re.findall(r"^::: (\S+)$", API, re.MULTILINE)}
PUBLIC = {**PAGE, **{name: getattr(tokenshard, name) for name in tokenshard.__all__}}


def reached() -> dict[str, Any]:
    """Public names, the classes that public functions and methods return, and all their public members."""
    found: dict[str, Any] = {}
    waiting = list(PUBLIC.items())
    while waiting:
        name, value = waiting.pop()
        if name in found or not getattr(value, "__module__", "tokenshard").startswith("tokenshard"):
            continue
        found[name] = value
        if inspect.ismodule(value):
            own = (one for one in vars(value).items() if getattr(one[1], "__module__", None) == value.__name__)
            waiting += [(f"{name}.{member}", one) for member, one in own if callable(one) and member[0] != "_"]
        else:
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


@pytest.mark.parametrize("name", sorted(name for name in REACHED if name in PUBLIC or "." not in name))
def test_every_public_class_and_function_says_more_than_its_name(name: str) -> None:
    text = inspect.getdoc(REACHED[name]) or ""
    assert len(text.split()) >= 5, name


def test_the_page_shows_every_public_name() -> None:
    assert None not in PAGE.values()
    assert PAGE.keys() >= set(tokenshard.__all__)


def test_exactly_the_listed_names_are_public() -> None:
    assert set(tokenshard.__all__) == set(tokenshard._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tokenshard.nothing  # noqa: B018
