"""The house: a room of the package imports only from the rooms above it, and the command line opens at once."""

from __future__ import annotations

import ast
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tokenshard.cli.main import COMMANDS, cli

PACKAGE = Path(__file__).parents[1] / "pipeline" / "tokenshard"
ROOMS = [
    *("errors", "extensions", "readable", "compiled", "atomic", "failures", "listing", "parquet", "scratch"),
    *("ranged", "remote", "store"),
    *("spec", "codecs", "shards", "sources"),
    *("quantizers", "tokenizers", "retrieval", "grids"),
    *("engine", "loading", "training", "report", "viewer", "api", "demo", "doctor", "__init__", "cli", "__main__"),
]
"""From the ground floor up to the door. ``__init__`` is the public face; only ``__main__`` imports the command line."""

ONLY_IN = {"ray": {"engine", "loading", "training"}}
NEVER_IN = {"spec": {"torch", "numpy", "pyarrow"}, "codecs": {"torch", "pyarrow"}, "shards": {"torch"}}
"""What rooms know nothing of, beside the rooms below them."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, wherever it stands; also those written as ``"module:name"``."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, _ = node.value.partition(":")
            if colon and module.startswith("tokenshard.") and " " not in node.value:
                yield node.lineno, module


def test_every_room_has_its_place() -> None:
    assert {room_of(file) for file in FILES} <= set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_above_it(file: Path) -> None:
    room = room_of(file)
    found = [(line, name.split(".")[1]) for line, name in imports(file) if name.startswith("tokenshard.")]
    wrong = [f"line {line}: {room} imports {other}" for line, other in found if not may_import(room, other)]
    assert wrong == []


def may_import(room: str, other: str) -> bool:
    return other == room or (other in ROOMS and ROOMS.index(other) < ROOMS.index(room))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_knows_nothing_of_libraries_that_are_not_its_business(file: Path) -> None:
    room, libraries = room_of(file), {name.split(".")[0] for _, name in imports(file)}
    assert libraries & NEVER_IN.get(room, set()) == set()
    assert {library for library, rooms in ONLY_IN.items() if library in libraries and room not in rooms} == set()


# -- the command line ----------------------------------------------------------------------------------------------

HEAVY = {"ray", "torch", "pandas", "pyarrow", "numba", "numpy", "faiss", "fsspec", "s3fs", "pydantic"}
SHOW_HELP = """
import sys
from tokenshard.cli.main import main
try:
    main(["--help"])
finally:
    print("loaded:", *{name.split(".")[0] for name in sys.modules})
"""


def test_help_loads_no_heavy_library() -> None:
    shown = subprocess.run([sys.executable, "-c", SHOW_HELP], capture_output=True, text=True, check=True).stdout
    text, _, loaded = shown.partition("loaded:")
    assert all(command in text for command in COMMANDS)
    assert "tokenshard" in loaded.split()
    assert HEAVY & set(loaded.split()) == set()


def test_help_takes_less_than_0_3_seconds_of_cpu_time() -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "tokenshard.cli.main", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert statistics.median(cpu_seconds() for _ in range(5)) <= 0.3


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, f"{name} is listed but cannot be loaded"
            yield from commands(found, (*words, name))


@pytest.mark.parametrize("words", list(commands(cli)), ids=lambda words: " ".join(("tokenshard", *words)))
def test_every_command_answers_help_with_an_example_of_itself(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="tokenshard")
    assert result.exit_code == 0
    assert "Example:\n" in result.output
    assert result.output.partition("Example:\n")[2].lstrip().startswith(" ".join(("tokenshard", *words)))


def test_every_listed_command_is_there() -> None:
    assert {words[0] for words in commands(cli) if words} == set(COMMANDS)
