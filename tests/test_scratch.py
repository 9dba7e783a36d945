"""Temporary folders do not outlive their process: at its end they go by themselves, after a kill with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HOLD = """
import sys
from tokenshard.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "shard").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that keeps a folder until its input ends, and that folder."""
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_killed_processes_left_is_removed_and_what_others_hold_is_not(tmp_path: Path) -> None:
    (tmp_path / "tokenshard-of-somebody").mkdir()
    living, held = holder(tmp_path)
    killed, left = holder(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (left / "shard").is_file()
    last, own = holder(tmp_path)
    assert not left.parent.exists()
    assert {folder.name for folder in tmp_path.iterdir()} == {
        held.parent.name,
        own.parent.name,
        "tokenshard-of-somebody",
    }
    for process in (living, last):
        process.communicate()
        assert process.returncode == 0
    assert [folder.name for folder in tmp_path.iterdir()] == ["tokenshard-of-somebody"]
