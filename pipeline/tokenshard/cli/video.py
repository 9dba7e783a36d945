"""`tokenshard convert video`."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.convert import convert, job_options, picture_size, run_and_print, split_options, tokenizer_options
from tokenshard.cli.options import storage_option


@convert.command()
@click.argument("src")
@click.argument("out")
@tokenizer_options
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="At most that many frames a second.")
@click.option("--every-n", type=click.IntRange(1), help="Every n-th frame of a clip.")
@click.option("--keyframes", is_flag=True, help="Key frames only; nothing else is decoded.")
@click.option("--scenes", type=click.FloatRange(0, 1, min_open=True), help="Frames that differ from the one before.")
@click.option("--clip-seconds", type=click.FloatRange(0, min_open=True), help="Length of a clip. [default: 2]")
@click.option("--stride-seconds", type=click.FloatRange(0, min_open=True), help="From clip to clip. [default: length]")
@click.option("--incomplete", type=click.Choice(["keep", "reject"]), help="Damaged or cut off clips. [default: keep]")
@click.option("--size", help="Pixels: SIDE or HEIGHTxWIDTH; needs --fit.")
@click.option("--fit", type=click.Choice(["keep", "resize", "center-crop", "pad"]), help="How frames get to --size.")
@click.option(
    "--form",
    type=click.Choice(["auto", "folder", "manifest", "webdataset"]),
    default="auto",
    show_default=True,
    help="How the videos are stored.",
)
@click.option("--labels", default="auto", show_default=True, help="auto, none, folder, name, or a column.")
@click.option("--unit-samples", type=click.IntRange(1), help="Most clips of a work unit (one shard). [default: 256]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@storage_option
@job_options
def video(src: str, out: str, **values: Any) -> None:
    """Convert videos to a token dataset: one row a clip.

    SRC is a folder, a glob, an s3:// prefix, WebDataset tars, or a CSV, JSONL or Parquet manifest (with columns start
    and end, in seconds: those parts). OUT is a folder or URL. Run the same command again to resume.

    \b
    Example:
      tokenshard convert video clips/ tokens/ --fps 8 --size 256 --fit center-crop
    """
    from tokenshard.spec.job import ConvertVideo, build_job

    fields, mode, display = split_options(values)
    source = {"path": src, **picture_size(values["size"], values["fit"])}
    names = ("fps", "every_n", "keyframes", "scenes", "clip_seconds", "stride_seconds", "incomplete", "form", "labels")
    source |= {name: values[name] for name in names if values[name] is not None}
    if values["unit_samples"]:
        fields["unit"] = {"samples": values["unit_samples"]}
    others = ("tokenizer", "encoder", "codec", "numerics", "compiled", "seed", "storage")
    fields |= {name: values[name] for name in others}
    fields["device"] = values["device"] or "cpu"
    run_and_print(build_job(ConvertVideo, {"source": source, "output": out, **fields}), mode, **display)
