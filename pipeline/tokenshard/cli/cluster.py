"""`tokenshard submit`, `status`, `logs` and `stop`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from tokenshard.cli.options import json_option, print_json, print_table, storage_option
from tokenshard.readable import counted

address_option = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    help="Ray's dashboard, http://HEAD:8265; or the variable RAY_API_SERVER_ADDRESS.",
)


def _environment(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE, e.g. AWS_ENDPOINT_URL=http://s3:9000")
        found[name] = value
    return found


def _cluster(address: str | None) -> Any:
    from tokenshard.engine.submit import Cluster

    if not address:
        raise click.UsageError("give the cluster with --address http://HEAD:8265")
    return Cluster(address)


@click.command()
@click.argument("job", type=click.Path(exists=True, dir_okay=False))
@address_option
@click.option("--follow", is_flag=True, help="Show what it writes until it ends; exit with its exit code.")
@click.option("--output", help="Override the spec's output.")
@click.option("--source", help="Override the spec's source.path.")
@click.option(
    "--env",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_environment,
    help="Variable of the job; no secrets. Repeatable.",
)
@click.option(
    "--package",
    default="upload",
    show_default=True,
    help="Where nodes have tokenshard from: upload (this one), image, or a wheel.",
)
@click.option("--extra", "extras", multiple=True, help="Extra of tokenshard to install on the nodes. Repeatable.")
@click.option("--pip", "requirements", multiple=True, help="Requirement to install on the nodes. Repeatable.")
@click.option("--driver-cpus", type=click.FloatRange(0), default=0, help="CPUs of the driver; 0: it runs on the head.")
@click.option("--append", is_flag=True, help="Add new inputs to the dataset that is there.")
@click.option("--id", "name", help="Id of the job. [default: its kind and a random part]")
@json_option
def submit(job: str, address: str | None, follow: bool, as_json: bool, **values: Any) -> int:
    """Run a job spec on a Ray cluster, and leave.

    Inputs and output must be where all nodes reach them. Whatever happens, submitting the same spec again goes on from
    what is finished.

    \b
    Example:
      tokenshard submit jobs/convert-images.yaml --address http://head:8265 --follow
      tokenshard submit job.yaml --address http://head:8265 --package image --env AWS_REGION=eu-north-1
    """
    from tokenshard.api import load_job
    from tokenshard.cli.convert import with_fields
    from tokenshard.engine.submit import Submission

    fields: dict[str, Any] = {"output": values["output"]} if values["output"] else {}
    if values["source"]:
        fields["source"] = {"path": values["source"]}
    spec = with_fields(load_job(job), fields)
    cluster = _cluster(address)
    started = cluster.submit(
        spec,
        Submission(
            package=values["package"],
            extras=values["extras"],
            requirements=values["requirements"],
            environment=values["env"],
            driver_cpus=values["driver_cpus"],
            id=values["name"],
            options=["--append"] if values["append"] else [],
        ),
    )
    if not follow:
        if as_json:
            print_json({"id": started, "output": spec.output})
        else:
            click.echo(f"submitted {started}")
            click.echo(f"  tokenshard logs {started} --follow --address {address}")
            click.echo(f"  tokenshard status {spec.output}")
        return 0
    click.echo(f"submitted {started}; Ctrl-C leaves it running", err=True)
    return _follow(cluster, started, as_json)


def _follow(cluster: Any, job: str, as_json: bool) -> int:
    """Show a job's log on stderr until it ends; its exit code."""
    try:
        status = cluster.follow(job, lambda text: click.echo(text, nl=False, err=True))
    except KeyboardInterrupt:
        click.echo(f"\n{job} goes on; stop it with: tokenshard stop {job} --address {cluster.address}", err=True)
        return 130
    _print_job(status, as_json)
    if status["state"] == "SUCCEEDED":
        return 0
    return int(status["exit_code"] or 1)


def _print_job(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    rows = [("job", status["id"]), ("state", status["state"].lower())]
    rows += [("output", status["output"])] if status["output"] else []
    rows += [("message", status["message"])] if status["message"] else []
    rows += [("exit code", str(status["exit_code"]))] if status["exit_code"] is not None else []
    for name in ("started", "ended"):
        if status[name] is not None:
            rows.append((name, datetime.fromtimestamp(status[name], UTC).isoformat(timespec="seconds")))
    print_table(rows)


@click.command()
@click.argument("target", required=False)
@address_option
@storage_option
@json_option
def status(target: str | None, address: str | None, storage: dict[str, Any], as_json: bool) -> None:
    """Say how far a job is.

    TARGET is the output of a conversion: the answer comes from there alone, whether it runs, stopped or was killed, on
    any machine. With --address it is the id of a submitted job; without TARGET, all of them.

    \b
    Example:
      tokenshard status tokens/
      tokenshard status --address http://head:8265
    """
    if target is not None and (address is None or "/" in target):
        _print_status(target, storage, as_json)
        return
    cluster = _cluster(address)
    if target is not None:
        _print_job(cluster.status(target), as_json)
        return
    found = cluster.jobs()
    if as_json:
        print_json(found)
        return
    for one in found:
        click.echo(f"{one['id']}  {one['state'].lower():<9}  {one['output']}")
    if not found:
        click.echo("no job of tokenshard was submitted there")


def _print_status(out: str, storage: dict[str, Any], as_json: bool) -> None:
    from tokenshard.engine.status import job_status
    from tokenshard.readable import readable_bytes, tallied
    from tokenshard.store import Store

    found = job_status(Store(out, storage))
    if as_json:
        print_json(found.json())
        return
    rows = [
        ("job", f"{found.kind}, version {found.version} of {found.output}"),
        ("state", found.state + (f": {found.reason}" if found.reason else "")),
    ]
    if found.units is not None:
        share = f" ({found.units_done / found.units:.0%})" if found.units else ""
        rows.append(
            ("units", f"{found.units_done:,} of {found.units:,}{share}, {counted(found.inputs or 0, 'input')} planned")
        )
    if found.state == "running" and found.phase:
        rate = f", {found.rate:,.0f} inputs/s" if found.rate else ""
        rows.append(
            ("phase", f"{found.phase}: {counted(found.inputs_done, 'input')}{rate}, {counted(found.rejects, 'reject')}")
        )
    if found.token_bytes:
        rows.append(
            ("bytes", f"{readable_bytes(found.raw_bytes)} in, {readable_bytes(found.token_bytes)} out (this run)")
        )
    if found.driver:
        rows.append(("driver", f"{found.driver}, last heard of {found.heard}"))
    if found.events:
        rows.append(("failures", tallied(found.events)))
        rows += [("", f"workers lost: {tallied(found.deaths)}")] if found.deaths else []
        rows.append(("", found.last_event))
    print_table(rows)
    if found.state in {"stopped", "dead", "silent"}:
        click.echo("Run the same command again to go on from here.")


@click.command()
@click.argument("job")
@address_option
@click.option("--follow", is_flag=True, help="Until the job ends; exit with its exit code.")
def logs(job: str, address: str | None, follow: bool) -> int:
    """Print what a submitted job has written.

    \b
    Example:
      tokenshard logs convert-images-1f2e3d4c --follow --address http://head:8265
    """
    cluster = _cluster(address)
    if follow:
        return _follow(cluster, job, False)
    click.echo(cluster.logs(job), nl=False)
    return 0


@click.command()
@click.argument("job")
@address_option
@click.option("--wait", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to wait for its end.")
@json_option
def stop(job: str, address: str | None, wait: float, as_json: bool) -> int:
    """Stop a submitted job. Finished units stay; submitting the spec again goes on from there.

    \b
    Example:
      tokenshard stop convert-images-1f2e3d4c --address http://head:8265
    """
    status = _cluster(address).stop(job, wait)
    _print_job(status, as_json)
    if status["state"] in {"PENDING", "RUNNING"}:
        click.echo(f"{job} has not ended yet", err=True)
        return 1
    return 0
