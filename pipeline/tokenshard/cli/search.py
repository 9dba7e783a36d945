"""`tokenshard search`."""

from __future__ import annotations

from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option


@click.group()
def search() -> None:
    """Search a dataset of documents by late interaction, on its codes.

    \b
    Example:
      tokenshard search query pages/ "wings at low speed"
    """


def _opened(out: str, values: dict[str, Any]) -> Any:
    from tokenshard.retrieval.search import PageSearch
    from tokenshard.shards.dataset import open_dataset

    dataset = open_dataset(out, values["storage"])
    return dataset, PageSearch(dataset, values["encoder"], values["device"])


def _placed(path: str, storage: dict[str, Any]) -> tuple[Any, str]:
    """The store of a file, and its name there."""
    from tokenshard.store import Store

    folder, _, name = path.rpartition("/")
    return Store(folder or ("/" if path.startswith("/") else "."), storage), name


_ENCODER = click.option("--encoder", help="Where the weights of a transformers model are now: hf:FOLDER.")
_DEVICE = click.option("--device", type=click.Choice(["cpu", "cuda", "mps", "xpu"]), default="cpu", show_default=True)
_THREADS = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="That score pages.")


@search.command()
@click.argument("out")
@click.argument("text")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Pages to show.")
@_ENCODER
@_DEVICE
@_THREADS
@storage_option
@json_option
def query(out: str, text: str, top: int, threads: int, as_json: bool, **values: Any) -> None:
    """Show the pages of OUT that answer TEXT best.

    \b
    Example:
      tokenshard search query pages/ "wings at low speed" --top 5
    """
    from dataclasses import asdict

    _, pages = _opened(out, values)
    hits = pages.find(text, top, threads)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    for hit in hits:
        click.echo(f"{hit.score:8.3f}  {hit.key}")


@search.command("eval")
@click.argument("out")
@click.argument("queries")
@click.argument("judgements")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="Ranks that count.")
@click.option("--exact", is_flag=True, help="Beside exact MaxSim: the pages are read and encoded again.")
@_ENCODER
@_DEVICE
@_THREADS
@storage_option
@json_option
def evaluate(
    out: str, queries: str, judgements: str, top: int, exact: bool, threads: int, as_json: bool, **values: Any
) -> None:
    """Measure rankings of documents against JUDGEMENTS (tab-separated or JSON lines) of QUERIES (JSON lines).

    \b
    Example:
      tokenshard search eval pages/ queries.jsonl qrels.tsv
    """
    from tokenshard.retrieval.evaluation import (
        estimate,
        measured,
        ndcg,
        read_judgements,
        read_queries,
        recall,
        retained,
    )
    from tokenshard.retrieval.evaluation import reciprocal_rank as mrr
    from tokenshard.retrieval.search import bytes_per_vector

    asked = read_queries(*_placed(queries, values["storage"]))
    judged = read_judgements(*_placed(judgements, values["storage"]))
    dataset, pages = _opened(out, values)
    wanted = {name: text for name, text in asked.items() if name in judged}
    run = {name: pages.documents(text, top, threads) for name, text in wanted.items()}
    result: dict[str, Any] = {"queries": len(run), "pages": len(pages), "vectors": pages.vectors}
    shown = [("queries", f"{len(run):,}"), ("pages", f"{len(pages):,}"), ("vectors", f"{pages.vectors:,}")]
    for name, measure in ((f"ndcg_at_{top}", ndcg), (f"recall_at_{top}", recall), (f"mrr_at_{top}", mrr)):
        found = estimate(measured(measure, run, judged, top))
        result |= {name: found.mean, f"{name}_interval": [found.low, found.high]}
        shown.append((name, f"{found}"))
    if exact:
        from tokenshard.report.exact_search import exact_rankings

        base = measured(ndcg, exact_rankings(dataset, pages.encoder, wanted, top), judged, top)
        kept = retained(measured(ndcg, run, judged, top), base)
        result |= {f"ndcg_at_{top}_exact": estimate(base).mean, f"ndcg_at_{top}_retained": kept.mean}
        result[f"ndcg_at_{top}_retained_interval"] = [kept.low, kept.high]
        shown += [(f"ndcg_at_{top}_exact", f"{estimate(base)}"), (f"ndcg_at_{top}_retained", f"{kept}")]
    result["bytes_per_vector"] = bytes_per_vector(dataset, pages.vectors)
    shown.append(("bytes_per_vector", f"{result['bytes_per_vector']:.2f}"))
    if as_json:
        print_json(result)
    else:
        print_table(shown)
