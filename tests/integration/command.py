"""The `tokenshard` command as users run it: in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tokenshard.cli.main import main


def command_line(*words: str) -> list[str]:
    """The `tokenshard` command of this environment."""
    return [sys.executable, "-m", "tokenshard.cli.main", *words]


def tokenshard_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end; ``environment`` is added to the variables."""
    environ = {**os.environ, **environment}
    return subprocess.run(command_line(*words), capture_output=True, text=True, env=environ, timeout=300, check=False)


def command_here(*words: str) -> subprocess.CompletedProcess[str]:
    """Run it in this process: where nothing that a process of its own is for is tested, its start is saved."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(words))
        except SystemExit as end:
            return subprocess.CompletedProcess(words, int(end.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command did not end with an exit code")


def convert(src: Path | str, out: Path | str, *words: str, **environment: str) -> dict[str, Any]:
    """The summary of `tokenshard convert images`; any failure fails the test."""
    done = tokenshard_command("convert", "images", str(src), str(out), "--quiet", "--json", *words, **environment)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def refused(*words: str, code: int = 1, **environment: str) -> str:
    """The one line a failing command prints."""
    done = tokenshard_command(*words, **environment)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(("tokenshard: ", "Error: "))]
    assert len(lines) == 1, done.stderr
    return lines[0]
