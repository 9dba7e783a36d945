"""The storage chart: a PNG with a panel for every quantity that was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tokenshard.report.charts import StorageRow, storage_chart

SIZES = [StorageRow("digits", "raw", 1_000_000), StorageRow("digits", "tokens", 50_000)]


def test_the_chart_is_a_picture_with_a_panel_for_every_quantity_measured(tmp_path: Path) -> None:
    storage_chart(SIZES, tmp_path / "sizes.png")
    storage_chart([*SIZES, StorageRow("digits", "JPEG", 200_000, 33.0, 0.95)], tmp_path / "all.png")
    sizes, everything = Image.open(tmp_path / "sizes.png"), Image.open(tmp_path / "all.png")
    assert (sizes.format, everything.format) == ("PNG", "PNG")
    assert everything.width > 2 * sizes.width
    assert len(everything.convert("RGB").getcolors(1 << 24)) > 10


def test_every_dataset_gets_a_row_of_panels(tmp_path: Path) -> None:
    storage_chart(SIZES, tmp_path / "one.png")
    storage_chart([*SIZES, StorageRow("photos", "raw", 7), StorageRow("photos", "tokens", 0)], tmp_path / "two.png")
    one, two = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "two.png")
    assert two.height > 1.5 * one.height


def test_matplotlib_is_imported_only_to_draw() -> None:
    check = "import sys, tokenshard.report.charts; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
