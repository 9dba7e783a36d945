"""The command line as people and scripts meet it: help, mistakes, tables, colours, completion, JSON, exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from integration.command import command_line, convert, refused, tokenshard_command
from test_rooms import commands
from tokenshard.cli.main import cli, main

pytestmark = pytest.mark.integration
LONG = "a-name-that-is-much-longer-than-a-line-of-eighty-columns-" + 3 * "and-goes-on-" + "to-here.png"
NO_RESULT = {("logs",), ("completion",), ("view",)}
"""Commands whose output is text for its own sake."""


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine tiles of a photograph as tokens; one has a long name."""
    photograph = pytest.importorskip("skimage.data").coffee()
    root = tmp_path_factory.mktemp("commands")
    (root / "images").mkdir()
    for number in range(9):
        name = LONG if number == 0 else f"{number}.png"
        Image.fromarray(photograph[30 * number : 30 * number + 32, 100:148]).save(root / "images" / name)
    words = ["--tokenizer", "patch:8x8,k=16", "--engine", "local", "--workers", "0"]
    summary = convert(root / "images", root / "tokens", *words)
    assert {"num_samples", "num_rejects", "seconds", "fingerprint"} <= summary.keys()
    return root / "tokens"


def command(words: tuple[str, ...]) -> click.Command:
    found: Any = cli
    for word in words:
        found = found.get_command(click.Context(found), word)
    return found


def leaves() -> Iterator[tuple[str, ...]]:
    return (words for words in commands(cli) if not isinstance(command(words), click.Group))


def test_every_command_that_prints_a_result_prints_it_as_json_too() -> None:
    without = {words for words in leaves() if "--json" not in {o for p in command(words).params for o in p.opts}}
    assert without == NO_RESULT


def test_every_option_says_what_it_is_for() -> None:
    silent = [
        f"{' '.join(words)} {parameter.opts[0]}"
        for words in leaves()
        for parameter in command(words).params
        if isinstance(parameter, click.Option) and not (parameter.help or parameter.show_default)
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["conver"], "convert"),
        (["convert", "imags", "a", "b"], "images"),
        (["grid", "decod", "x"], "decode"),
        (["info", "tokens", "--jsn"], "--json"),
        (["convert", "images", "a", "b", "--codec", "contxt"], "context"),
        (["export", "a", "b", "--format", "webdatset"], "webdataset"),
        (["convert", "images", "a", "b", "--tokenizer", "ptch:4x4"], "patch"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    said = capsys.readouterr().err
    assert re.search(rf"[Dd]id you mean '{meant}'\?", said), said


def test_what_is_near_to_nothing_is_answered_without_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["xyzzy"])
    assert "mean" not in capsys.readouterr().err


# -- what is printed --------------------------------------------------------------------------------------------------

PROMISED = {
    "info": {"fingerprint", "num_samples", "num_tokens", "num_rejects", "bytes"},
    "stats": {"bits_per_token", "order0_entropy", "codec", "bytes_per_sample"},
    "verify": {"ok", "errors"},
    "report": {"dataset", "sizes", "codes", "rejects", "throughput", "provenance", "samples", "notes"},
}


@pytest.mark.parametrize("name", list(PROMISED))
def test_json_has_the_keys_that_are_promised(tokens: Path, name: str) -> None:
    found = json.loads(tokenshard_command(name, str(tokens), "--json").stdout)
    assert PROMISED[name] <= found.keys()


def test_a_pipe_gets_whole_lines_without_escape_codes(tokens: Path, tmp_path: Path) -> None:
    picture = str(tmp_path / "samples.png")
    for words in (["info"], ["stats"], ["report"], ["verify"], ["show", "--out", picture]):
        done = tokenshard_command(words[0], str(tokens), *words[1:], COLUMNS="80")
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert "…" not in done.stdout
    assert LONG in tokenshard_command("report", str(tokens), COLUMNS="80").stdout


def on_terminal(words: list[str], columns: int, **environment: str) -> tuple[int, str]:
    """Exit code and output of a command whose output is a terminal of so many columns."""
    master, slave = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
    running = subprocess.Popen(command_line(*words), stdout=slave, stderr=slave, stdin=slave, env=environ)
    os.close(slave)
    said = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux: nobody has the other end open any more
            break
        if not part:
            break
        said += part
    os.close(master)
    return running.wait(), said.decode().replace("\r\n", "\n")


def test_a_terminal_of_80_columns_gets_all_within_them(tokens: Path) -> None:
    code, said = on_terminal(["report", str(tokens)], 80, NO_COLOR="1")
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    assert LONG in "".join(said.split())
    assert "\x1b" not in said


def test_colours_are_for_terminals_and_no_color_turns_them_off() -> None:
    assert "\x1b[3" in on_terminal(["doctor"], 100, NO_COLOR="")[1]
    assert "\x1b" not in on_terminal(["doctor"], 100, NO_COLOR="1")[1]


@pytest.mark.parametrize("words", list(leaves()), ids=" ".join)
def test_help_fits_into_80_columns_but_for_examples(words: tuple[str, ...]) -> None:
    from click.testing import CliRunner

    text = CliRunner().invoke(cli, [*words, "--help"], prog_name="tokenshard", terminal_width=80).output
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("tokenshard ")]
    assert max(map(len, lines)) <= 80


# -- exit codes -------------------------------------------------------------------------------------------------------


def test_exit_codes_are_0_for_well_1_for_failed_and_2_for_usage(tokens: Path, tmp_path: Path) -> None:
    assert tokenshard_command("verify", str(tokens)).returncode == 0
    damaged = tmp_path / "damaged"
    shutil.copytree(tokens, damaged)
    (shard,) = (damaged / "data").iterdir()
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert tokenshard_command("verify", str(damaged)).returncode == 1
    assert "no token dataset" in refused("info", str(tmp_path / "nothing"), code=2)
    assert "OUT" in refused("info", code=2)


def test_debug_shows_the_traceback_of_an_error(tmp_path: Path) -> None:
    done = tokenshard_command("--debug", "info", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "SpecError" in done.stderr


# -- completion -------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    """An environment in which `tokenshard` is a program of the PATH."""
    script = tmp_path / "bin" / "tokenshard"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tokenshard.cli.main "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("tokenshard conv", {"convert"}),
        ("tokenshard convert vi", {"video"}),
        ("tokenshard info --js", {"--json"}),
        ("tokenshard convert images a b --codec co", {"context", "copy"}),
    ],
)
def test_bash_completes_commands_options_and_values(typed: str, offered: set[str], program: dict[str, str]) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    words = typed.split()
    script = f"""
        source <(tokenshard completion bash)
        complete -p tokenshard > /dev/null || exit 9
        COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}
        _tokenshard_completion tokenshard
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=program, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_of_all_shells_ask_the_program(shell: str) -> None:
    done = tokenshard_command("completion", shell)
    assert f"_TOKENSHARD_COMPLETE={shell}_complete" in done.stdout
