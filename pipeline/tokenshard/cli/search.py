"""`tokenshard search`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import click

from tokenshard.cli.options import F, json_option, print_json, print_table, storage_option


@click.group()
def search() -> None:
    """Search a dataset of documents by late interaction, on its codes.

    \b
    Example:
      tokenshard search query pages/ "wings at low speed"
    """


STAGES = click.Choice(["lists", "signs", "hnsw"])


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


_ENCODER = click.option("--encoder", help="Where the weights of a transformers model are now: hf:FOLDER.")
_DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "mps", "xpu"]),
    default="cpu",
    show_default=True,
    help="Of the encoder and of scoring. CPUs score codes, others half-precision vectors that they make of these.",
)
_THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="That score pages.")
_STAGE = click.option(
    "--first-stage", type=STAGES, help="The index that proposes candidates.  [default: the first built]"
)
_SOURCE = _together(
    _ENCODER,
    _DEVICE,
    click.option("--memory", metavar="SIZE", default="4GiB", show_default=True, help="For codes; others are streamed."),
    click.option("--cache", metavar="FOLDER", help="Keep here what is read from remote storage."),
    click.option("--cache-size", metavar="SIZE", default="16GiB", show_default=True, help="Limit of the cache."),
)
_EFFORT = _together(
    _STAGE,
    click.option(
        "--candidates", type=click.IntRange(1), default=256, show_default=True, help="Pages an index proposes."
    ),
    click.option(
        "--probes", type=click.IntRange(1), default=32, show_default=True, help="Lists a query vector looks at."
    ),
    click.option("--exhaustive", is_flag=True, help="Score all pages, index or not."),
)


def _opened(out: str, values: dict[str, Any]) -> Any:
    from tokenshard.retrieval.search import PageSearch
    from tokenshard.shards.cache import Cache
    from tokenshard.shards.dataset import open_dataset

    dataset = open_dataset(out, values["storage"])
    if values["cache"] is not None:
        dataset = dataset.cached(Cache(values["cache"], _bytes(values["cache_size"])))
    memory = _bytes(values["memory"])
    return PageSearch(dataset, values["encoder"], values["device"], memory, values["first_stage"])


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise click.BadParameter(f"{text!r} is no size; write e.g. 4GiB") from error


def _effort(values: dict[str, Any]) -> Any:
    from tokenshard.retrieval.search import Effort

    return Effort(values["candidates"], values["probes"], values["exhaustive"])


def _placed(path: str, storage: dict[str, Any]) -> tuple[Any, str]:
    """The store of a file, and its name there."""
    from tokenshard.store import Store

    folder, _, name = path.rpartition("/")
    return Store(folder or ("/" if path.startswith("/") else "."), storage), name


@search.command()
@click.argument("out")
@click.option("--first-stage", type=STAGES, default="lists", show_default=True, help="What proposes candidates.")
@click.option("--rebuild", is_flag=True, help="Index all pages again, not just those that are not indexed.")
@storage_option
@json_option
def build(out: str, first_stage: Any, rebuild: bool, storage: dict[str, Any], as_json: bool) -> None:
    """Index the pages of OUT, so that a search scores just some of them. After pages were added, run it again.

    \b
    Example:
      tokenshard search build pages/
    """
    from tokenshard.retrieval.compression import state
    from tokenshard.retrieval.index import build as build_index
    from tokenshard.shards.dataset import open_dataset

    dataset = open_dataset(out, storage)
    compressor = state.load(dataset.store.read(f"tokenizer/{dataset.manifest.tokenizer.fingerprint}/model.safetensors"))
    done = build_index(dataset, compressor, first_stage, rebuild)
    result = {
        "first_stage": done.stage,
        "version": done.version,
        "parts": len(done.parts),
        "entries": sum(part.entries for part in done.parts),
        "bytes": sum(part.file.bytes for part in done.parts) + (done.centroids.bytes if done.centroids else 0),
    }
    if as_json:
        print_json(result)
    else:
        print_table([(name, f"{value:,}" if isinstance(value, int) else value) for name, value in result.items()])


@search.command()
@click.argument("out")
@click.argument("text", required=False)
@click.option("--image", metavar="FILE", help="Search by an image instead of a text, with encoders that read images.")
@click.option(
    "--queries",
    metavar="FILE",
    help='Many texts: JSON lines {"_id": …, "text": …}; or vectors: .npy, .safetensors. A line a query comes out.',
)
@click.option("--where", help="Only pages for which this holds, e.g. \"document == 'a.pdf' and page < 3\".")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Pages to show.")
@click.option("--show", type=click.Path(dir_okay=False), help="PNG: draw the pages, what answers highlighted.")
@_EFFORT
@_SOURCE
@_THREADS
@storage_option
@json_option
def query(
    out: str,
    text: str | None,
    image: str | None,
    queries: str | None,
    show: str | None,
    where: str | None,
    top: int,
    threads: int,
    as_json: bool,
    **values: Any,
) -> None:
    """Show the pages of OUT that answer TEXT best.

    \b
    Example:
      tokenshard search query pages/ "wings at low speed" --top 5 --show hits.png
    """
    if show is not None and queries is not None:
        raise click.UsageError("--show draws the answer of one query; leave --queries out")
    if sum(given is not None for given in (text, image, queries)) != 1:
        raise click.UsageError("give one of TEXT, --image and --queries")
    pages = _opened(out, values)
    if queries is not None:
        for name, found in _batch(pages, queries, values, top=top, threads=threads, where=where):
            click.echo(_line({"_id": name, **found}))
        return
    asked: Any = text if image is None else _pixels(image, values["storage"])
    answer = pages.find(asked, top, threads, where, _effort(values))
    found = _found(answer)
    if show is not None and answer.hits:
        from tokenshard.report.hits import draw_hits

        draw_hits(pages, asked, answer.hits, show)
        click.echo(f"wrote {show}", err=True)
    if as_json:
        print_json(found)
        return
    for hit in found["hits"]:
        click.echo(f"{hit['score']:8.3f}  {hit['key']}")
    if not found["exact"]:
        click.echo(f"(the best of {found['scored']:,} candidates among {len(pages):,} pages)", err=True)


def _found(found: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {"exact": found.exact, "scored": found.scored, "hits": [asdict(hit) for hit in found.hits]}


def _batch(pages: Any, queries: str, values: dict[str, Any], **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    asked = _asked(queries, values["storage"])
    answers = pages.find_all(list(asked.values()), effort=_effort(values), **options)
    yield from zip(asked, map(_found, answers), strict=True)


def _asked(queries: str, storage: dict[str, Any]) -> dict[str, Any]:
    """Queries by their ids: texts, or of files of arrays vectors."""
    from tokenshard.retrieval.evaluation import read_queries

    if not queries.endswith((".npy", ".safetensors")):
        return read_queries(*_placed(queries, storage))
    from tokenshard.retrieval.encoders.ready import read_query_vectors

    return read_query_vectors(queries, storage)


def _line(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _pixels(image: str, storage: dict[str, Any]) -> Any:
    """Pixels of an image file."""
    from tokenshard.errors import InputError, SpecError
    from tokenshard.sources.images.decode import decode_image
    from tokenshard.spec.images import ImageSourceSpec

    store, name = _placed(image, storage)
    try:
        return decode_image(store.read(name), ImageSourceSpec(path=image))
    except FileNotFoundError as error:
        raise SpecError(f"{image}: no such file; check the path") from error
    except InputError as error:
        raise SpecError(f"{image}: {error}; give another image file") from error


@search.command("eval")
@click.argument("out")
@click.argument("queries")
@click.argument("judgements")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Ranks that count.")
@click.option("--exact", is_flag=True, help="Beside exact MaxSim: the pages are read and encoded again.")
@click.option("--run", "run_file", help="File for the rankings in the format of TREC, for trec_eval, ranx or MTEB.")
@_EFFORT
@_SOURCE
@_THREADS
@storage_option
@json_option
def evaluate(
    out: str,
    queries: str,
    judgements: str,
    top: int,
    exact: bool,
    run_file: str | None,
    threads: int,
    as_json: bool,
    **values: Any,
) -> None:
    """Measure rankings of documents against JUDGEMENTS (tab-separated or JSON lines) of QUERIES (JSON lines).

    \b
    Example:
      tokenshard search eval pages/ queries.jsonl qrels.tsv --top 100 --run run.txt
    """
    from tokenshard.retrieval.evaluation import (
        estimate,
        measured,
        ndcg,
        read_judgements,
        recall,
        retained,
        trec_run,
    )
    from tokenshard.retrieval.evaluation import reciprocal_rank as mrr
    from tokenshard.retrieval.search import bytes_per_vector

    asked = _asked(queries, values["storage"])
    judged = read_judgements(*_placed(judgements, values["storage"]))
    pages = _opened(out, values)
    effort = _effort(values)
    wanted = {name: text for name, text in asked.items() if name in judged}
    scored = {name: pages.documents(text, top, threads, effort) for name, text in wanted.items()}
    run = {name: list(found) for name, found in scored.items()}
    if run_file is not None:
        store, file = _placed(run_file, values["storage"])
        store.put(file, trec_run(scored).encode())
    result: dict[str, Any] = {"queries": len(run), "pages": len(pages), "vectors": pages.vectors}
    shown = [("queries", f"{len(run):,}"), ("pages", f"{len(pages):,}"), ("vectors", f"{pages.vectors:,}")]
    for name, measure in ((f"ndcg_at_{top}", ndcg), (f"recall_at_{top}", recall), (f"mrr_at_{top}", mrr)):
        found = estimate(measured(measure, run, judged, top))
        result |= {name: found.mean, f"{name}_interval": [found.low, found.high]}
        shown.append((name, f"{found}"))
    if exact:
        from tokenshard.report.exact_search import exact_rankings

        base = measured(ndcg, exact_rankings(pages.dataset, pages.encoder, wanted, top), judged, top)
        kept = retained(measured(ndcg, run, judged, top), base)
        result |= {f"ndcg_at_{top}_exact": estimate(base).mean, f"ndcg_at_{top}_retained": kept.mean}
        result[f"ndcg_at_{top}_retained_interval"] = [kept.low, kept.high]
        shown += [(f"ndcg_at_{top}_exact", f"{estimate(base)}"), (f"ndcg_at_{top}_retained", f"{kept}")]
    result["bytes_per_vector"] = bytes_per_vector(pages.dataset, pages.vectors)
    shown.append(("bytes_per_vector", f"{result['bytes_per_vector']:.2f}"))
    if as_json:
        print_json(result)
    else:
        print_table(shown)
