"""Dashboard, alerts and scraping of infra/: every query names what is exported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra_files import INFRA, load, values
from tokenshard.engine.metrics import METRICS


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics that a PromQL query reads, with the labels it selects by."""
    import promql_parser

    nodes: list[object] = []
    promql_parser.walk(promql_parser.parse(query), nodes.append)
    for node in nodes:
        if isinstance(node, promql_parser.VectorSelector):
            yield node.name, {matcher.name for matcher in node.matchers.matchers}


def dashboard_queries() -> list[str]:
    board = json.loads((INFRA / "grafana" / "tokenshard.json").read_text())
    return [query.replace("$output", ".*") for panel in board["panels"] for query in values(panel, "expr")]


def alert_queries() -> list[str]:
    return [rule["expr"] for group in load("grafana", "alerts.yaml")["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("query", [*dashboard_queries(), *alert_queries()])
def test_every_query_names_metrics_and_labels_that_exist(query: str) -> None:
    exported = {}
    for name, metric in METRICS.items():
        endings = {"histogram": ("_bucket", "_sum", "_count")}.get(metric.kind, ("",))
        exported |= {f"ray_{name}{ending}": {"output", *metric.labels} for ending in endings}
    used = list(selectors(query))
    assert used
    for name, labels in used:
        assert name in exported
        assert labels <= exported[name]


def test_every_metric_is_on_the_dashboard() -> None:
    used = {name for query in dashboard_queries() for name, _ in selectors(query)}
    assert {name.removeprefix("ray_").removesuffix("_bucket") for name in used} == set(METRICS)


def test_the_panels_do_not_overlap() -> None:
    board = json.loads((INFRA / "grafana" / "tokenshard.json").read_text())
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in own) < 24
        assert not own & cells
        cells |= own
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_prometheus_scrapes_the_services_of_the_compose_file() -> None:
    config = load("grafana", "prometheus.yaml")
    services = load("compose", "compose.yaml")["services"]
    (scraped,) = config["scrape_configs"][0]["dns_sd_configs"]
    for name in scraped["names"]:
        assert f"--metrics-export-port={scraped['port']}" in services[name]["command"]
    mounted = [volume.split(":") for volume in services["prometheus"]["volumes"]]
    assert {Path(target).name for _, target, _ in mounted} == {"prometheus.yaml", *config["rule_files"]}
    assert all((INFRA / "compose" / source).exists() for source, _, _ in mounted)
