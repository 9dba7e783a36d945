"""Benchmarks that need a GPU run here on a few small images, so that they work when one is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.integration
def test_conv_networks_are_measured_end_to_end(tmp_path: Path) -> None:
    words = ["--networks", "f16", "--device", "cpu", "--no-compile", "--images", "4", "--single", "1", "--side", "32"]
    words += ["--batch", "2", "--workers", "0", "--seconds", "0.1", "--out", str(tmp_path / "out.json")]
    script = BENCHMARKS / "conv_end_to_end.py"
    done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["network"] == "f16"
    rates = [row[name] for name in ("encode", "convert", "convert_with_start", "one_file_an_image")]
    assert all(rate > 0 for rate in rates)
    assert row["convert_of_encode"] == pytest.approx(row["convert"] / row["encode"], rel=0.05, abs=0.01)
