"""`tokenshard doctor`: does everything work here, and if not, what helps?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, storage_option


@click.command()
@click.option(
    "--store", "stores", multiple=True, metavar="URL", help="Folder or s3://bucket/prefix to try. Repeatable."
)
@click.option("--address", help="Ray cluster to reach: auto, HOST:PORT, or http://HEAD:8265.")
@storage_option
@json_option
def doctor(stores: tuple[str, ...], address: str | None, storage: dict[str, Any], as_json: bool) -> int:
    """Check this machine, and stores and a cluster if named. Exit code 1 if anything does not work.

    Looks at versions, extras, memory, disk and GPU; codes and decodes with every codec; fits a small tokenizer twice.
    In a store it creates objects, has a second create refused, reads, lists, and removes them again.

    \b
    Example:
      tokenshard doctor
      tokenshard doctor --store s3://bucket/prefix --address http://head:8265
    """
    from tokenshard.doctor.check import Check, Finding, option_secrets, run_check
    from tokenshard.doctor.codes import code_checks
    from tokenshard.doctor.machine import machine_checks
    from tokenshard.doctor.storage import store_check

    def cluster() -> Finding:
        from tokenshard.engine.reach import cluster_facts

        return Finding("ok", cluster_facts(address or "auto"))

    checks = [*machine_checks(), *code_checks(), *(store_check(url, storage) for url in stores)]
    if address is not None:
        checks.append(Check("ray", cluster, "start the cluster, or correct --address; Ray must be of the same version"))
    results = []
    for check in checks:
        result = run_check(check, option_secrets(storage))
        results.append(result)
        if not as_json:
            _print(result.state, result.name, result.text, result.remedy)
    failed = sum(result.state == "failed" for result in results)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(result) for result in results]})
    else:
        asked = "" if stores and address else "; name a store with --store and a cluster with --address to try them"
        click.echo(
            f"{failed} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed{asked}"
        )
    return 1 if failed else 0


COLOURS = {"ok": "green", "note": "yellow", "failed": "red"}


def _print(state: str, name: str, text: str, remedy: str) -> None:
    click.echo(f"{click.style(f'{state:<6}', fg=COLOURS[state])}  {name}: {text}")
    if remedy:
        click.echo(f"        -> {remedy}")
