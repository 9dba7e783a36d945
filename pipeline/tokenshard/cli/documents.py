"""`tokenshard convert documents`."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.convert import convert, job_options, run_and_print, split_options
from tokenshard.cli.options import storage_option


@convert.command()
@click.argument("src")
@click.argument("out")
@click.option(
    "--encoder", default="minilm", show_default=True, help="minilm, patch-dct, or hf:FOLDER of a transformers model."
)
@click.option("--compression", default="ofec:0.16", show_default=True, help="Method for the vectors, e.g. hpc:256.")
@click.option("--form", type=click.Choice(["auto", "files", "corpus"]), default="auto", show_default=True)
@click.option("--pages", help="Pages of each document, e.g. 1-3,7,10-.")
@click.option("--dpi", type=click.FloatRange(0, min_open=True), help="Of page images. [default: a megapixel a page]")
@click.option("--passwords-env", help="Environment variable with the passwords of encrypted files.")
@click.option("--passwords-file", help="File with the passwords of encrypted files.")
@click.option("--device", type=click.Choice(["cpu", "cuda", "mps", "xpu"]), default="cpu", show_default=True)
@click.option("--numerics", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--unit-samples", type=click.IntRange(1), help="Most pages of a work unit (one shard). [default: 1024]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@storage_option
@job_options
def documents(src: str, out: str, **values: Any) -> None:
    """Convert PDF files, page images or a text corpus to compressed sets of vectors, a page a row.

    SRC is a file, a folder, a glob, an s3:// prefix, tars of documents, or JSON lines in the BEIR layout.

    \b
    Example:
      tokenshard convert documents papers/ pages/
      tokenshard convert documents scans/ pages/ --encoder hf:models/colqwen2 --device cuda --numerics bf16
    """
    from tokenshard.spec.job import ConvertDocuments, build_job

    fields, mode, display = split_options(values)
    names = ("form", "pages", "dpi", "passwords_env", "passwords_file")
    source = {"path": src} | {name: values[name] for name in names if values[name] is not None}
    if values["unit_samples"]:
        fields["unit"] = {"samples": values["unit_samples"]}
    fields |= {name: values[name] for name in ("encoder", "compression", "device", "numerics", "seed", "storage")}
    run_and_print(build_job(ConvertDocuments, {"source": source, "output": out, **fields}), mode, **display)


@convert.command()
@click.argument("src")
@click.argument("out")
@click.option("--compression", default="ofec:0.16", show_default=True, help="Method for the vectors, e.g. opq16.")
@click.option("--encoder", help="What made the vectors, for queries: hf:FOLDER. [default: that of the dataset SRC]")
@click.option("--form", type=click.Choice(["auto", "dataset", "arrays", "tables"]), default="auto", show_default=True)
@click.option("--version", type=click.IntRange(1), help="Version of the dataset SRC. [default: the newest]")
@click.option("--column", help="Column of a table with the vectors. [default: the only one]")
@click.option("--key-column", help="Column of a table with the keys. [default: key]")
@click.option("--numerics", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--unit-samples", type=click.IntRange(1), help="Most pages of a work unit (one shard). [default: 1024]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@storage_option
@job_options
def vectors(src: str, out: str, **values: Any) -> None:
    """Compress ready vectors of pages; of a dataset, by another method.

    SRC is .npy and .safetensors files with arrays [n, d] or [pages, n, d], Parquet or Arrow files with a list of
    vectors a row, or a dataset of pages.

    \b
    Example:
      tokenshard convert vectors embeddings/ pages/ --encoder hf:models/colqwen2
      tokenshard convert vectors pages/ smaller/ --compression hpc:256
    """
    from tokenshard.spec.job import CompressDocuments, build_job

    fields, mode, display = split_options(values)
    names = ("form", "version", "column", "key_column")
    source = {"path": src} | {name: values[name] for name in names if values[name] is not None}
    if values["unit_samples"]:
        fields["unit"] = {"samples": values["unit_samples"]}
    fields |= {name: values[name] for name in ("encoder", "compression", "numerics", "seed", "storage")}
    run_and_print(build_job(CompressDocuments, {"source": source, "output": out, **fields}), mode, **display)
