"""Compiled loops work where nothing can be kept on disk, and say so once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tokenshard.codecs import pack_kernels
from tokenshard.compiled import REMEDY, cache_folder

PACKAGE = Path(__file__).parents[1] / "pipeline" / "tokenshard"
ROUND_TRIP = """
import numpy as np
from tokenshard.codecs.pack import PackCodec
import tokenshard.codecs.rans_kernels, tokenshard.codecs.fit_kernels
ids, grids = np.arange(60, dtype=np.uint16), np.full((3, 2), (4, 5), np.int32)
data, lengths = PackCodec(64).encode(ids, grids)
print(int((PackCodec(64).decode(data, lengths, grids) == ids).sum()))
"""


def test_without_a_folder_that_can_be_written_kernels_work_and_one_warning_names_the_remedy(tmp_path: Path) -> None:
    """Of a package that nobody can write, run by a user without a home."""
    package = tmp_path / "tokenshard"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    folders = [folder for folder in package.rglob("*") if folder.is_dir()]
    for folder in [package, *folders]:
        (folder / "__pycache__").touch()  # a file: no folder can be made there, not even by root
    (tmp_path / "home").touch()
    nowhere = str(tmp_path / "home" / "none")
    environ = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environ |= {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ROUND_TRIP], capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout) == (0, "60\n"), done.stderr
    assert done.stderr.count("compiled loops cannot be kept") == 1
    assert REMEDY in done.stderr


def test_elsewhere_they_are_kept() -> None:
    folder = cache_folder(pack_kernels.pack)
    assert folder is not None
    assert Path(folder).is_dir()
