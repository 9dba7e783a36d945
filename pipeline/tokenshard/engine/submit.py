"""Jobs on a Ray cluster, through its job server: submit, watch, stop.

A submission carries the job spec and, unless the cluster's image holds tokenshard, the package itself. Nothing else of
this machine reaches the cluster: inputs and output must be where all its nodes can read and write them.

Source: Ray Jobs API (JobSubmissionClient) and runtime environments.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import tokenshard
from tokenshard.errors import JobError, SpecError
from tokenshard.scratch import scratch_folder
from tokenshard.spec.conversion import JobSpec
from tokenshard.spec.secrets import is_secret_variable

JOB_FILE = "job.yaml"
ENTRYPOINT = f"python -m tokenshard.cli.main run {JOB_FILE}"
PATIENCE = 30.0
"""Seconds that the job server gets to answer, e.g. while the agents of a new cluster start."""
TERMINAL = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Submission:
    """What goes to the cluster with a job spec."""

    package: str = "upload"
    """upload: this tokenshard; image: the one that the cluster has; else a wheel"""
    extras: Sequence[str] = ()
    """of tokenshard, whose requirements are installed on the nodes"""
    requirements: Sequence[str] = ()
    """installed beside them"""
    environment: Mapping[str, str] = field(default_factory=dict)
    driver_cpus: float = 0
    """0: the driver runs on the head"""
    id: str | None = None
    options: Sequence[str] = ()
    """of `tokenshard run` on the cluster"""


class Cluster:
    """The job server of a Ray cluster. Raises JobError, with what to do, where it does not answer or refuses."""

    def __init__(self, address: str) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise SpecError("submitting needs Ray's job client: pip install 'tokenshard[cluster]'") from error
        self.address = address
        for noisy in (
            "ray.dashboard.modules.job.sdk",
            "ray.dashboard.modules.dashboard_sdk",
            "ray._private.runtime_env",
        ):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        with _explained(address):
            self._client = _patiently(lambda: JobSubmissionClient(address))

    def submit(self, spec: JobSpec, submission: Submission) -> str:
        """Start a job; its id. Raises SpecError for what cannot work on a cluster."""
        check_submittable(spec, submission)
        name = submission.id or f"{spec.kind}-{uuid.uuid4().hex[:8]}"
        with scratch_folder() as folder, _explained(self.address):
            Path(folder, JOB_FILE).write_text(spec.model_dump_json(indent=1, exclude_none=True), encoding="utf-8")
            environment = runtime_env(str(folder), submission)
            _patiently(
                lambda: self._client.submit_job(
                    entrypoint=" ".join((ENTRYPOINT, *submission.options)),
                    submission_id=name,
                    runtime_env=environment,
                    metadata={"tokenshard_kind": spec.kind, "tokenshard_output": spec.output},
                    entrypoint_num_cpus=submission.driver_cpus,
                )
            )
        return name

    def status(self, job: str) -> dict[str, Any]:
        """`id`, `state`, `message`, `output`, `exit_code`, `started` and `ended` (seconds since 1970) of a job."""
        with _explained(self.address, job):
            found = self._client.get_job_info(job)
        return {
            "id": job,
            "state": str(found.status.value),
            "message": found.message or "",
            "output": (found.metadata or {}).get("tokenshard_output", ""),
            "exit_code": found.driver_exit_code,
            "started": None if found.start_time is None else found.start_time / 1000,
            "ended": None if found.end_time is None else found.end_time / 1000,
        }

    def jobs(self) -> list[dict[str, Any]]:
        """The status of all jobs that `tokenshard submit` or a RayJob's `tokenshard run` started, oldest first."""
        with _explained(self.address):
            found = [one for one in self._client.list_jobs() if one.submission_id and _is_ours(one)]
        return [self.status(one.submission_id) for one in sorted(found, key=lambda one: one.start_time or 0)]

    def logs(self, job: str) -> str:
        """What the job's driver wrote so far."""
        with _explained(self.address, job):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, write: Callable[[str], None]) -> dict[str, Any]:
        """Pass on what the driver writes until the job ends; its status then."""

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(job):
                write(lines)

        with _explained(self.address, job):
            asyncio.run(tail())
        while (status := self.status(job))["state"] not in TERMINAL:
            time.sleep(0.5)
        return status

    def stop(self, job: str, seconds: float) -> dict[str, Any]:
        """Ask a job to stop and wait for its end; its status."""
        with _explained(self.address, job):
            self._client.stop_job(job)
        until = time.monotonic() + seconds
        while (status := self.status(job))["state"] not in TERMINAL and time.monotonic() < until:
            time.sleep(0.2)
        return status


def check_submittable(spec: JobSpec, submission: Submission) -> None:
    """Raises SpecError for paths of this machine, and for secrets on the command line."""
    fields: dict[str, Any] = {"output": spec.output, "source.path": spec.source.path}
    fields |= {name: getattr(spec, name, None) for name in ("tokenizer", "encoder")}
    for name, value in fields.items():
        if not isinstance(value, str) or "://" in value or os.path.isabs(value):
            continue
        if name in {"output", "source.path"} or os.path.exists(value):
            raise SpecError(
                f"{name} is {value!r}, a path on this machine: on the cluster it would be another one; give a URL "
                "(s3://…) or an absolute path of a file system that all nodes mount"
            )
    for name in submission.environment:
        if is_secret_variable(name):
            raise SpecError(
                f"--env {name}: everyone who can open the cluster's dashboard could read it; set secrets where the "
                "nodes start (an instance profile, a Kubernetes secret), not in a submission"
            )


def runtime_env(folder: str, submission: Submission) -> dict[str, Any]:
    """Ray's runtime environment of a submission; ``folder`` holds the job spec."""
    environment: dict[str, Any] = {"working_dir": folder, "env_vars": dict(submission.environment)}
    requirements = [*_requirements(submission.extras), *submission.requirements]
    if submission.package == "upload":
        environment["py_modules"] = [str(Path(tokenshard.__file__).parent)]
        environment["excludes"] = ["**/__pycache__"]
    elif submission.package != "image":
        if not Path(submission.package).is_file() or not submission.package.endswith(".whl"):
            raise SpecError(f"--package {submission.package}: is no wheel; give upload, image, or a .whl file")
        environment["py_modules"] = [str(Path(submission.package).resolve())]
    if requirements:
        environment["uv"] = requirements
    return environment


def _is_ours(job: Any) -> bool:
    """Whether tokenshard was submitted: by `tokenshard submit`, or as the entrypoint of a RayJob."""
    words = job.entrypoint.split()
    return "tokenshard_output" in (job.metadata or {}) or (bool(words) and Path(words[0]).name == "tokenshard")


def _requirements(extras: Sequence[str]) -> list[str]:
    """What extras of the installed tokenshard require."""
    try:
        known = requires("tokenshard") or []
    except PackageNotFoundError as error:
        raise SpecError("--extra needs an installed tokenshard, this one runs from its source folder") from error
    found = []
    for extra in extras:
        marks = (f"extra == '{extra}'", f'extra == "{extra}"')
        mine = [line.partition(";")[0].strip() for line in known if any(mark in line for mark in marks)]
        if not mine:
            raise SpecError(f"--extra {extra}: tokenshard has no such extra")
        found += mine
    return found


def _patiently(call: Callable[[], Any]) -> Any:
    """Tries again while the agents of a cluster that has just started are not there yet."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(1)


@contextmanager
def _explained(address: str, job: str | None = None) -> Iterator[None]:
    """Errors of Ray's client as one line."""
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if job is not None and ("does not exist" in text or "404" in text):
            text = f"has no job {job}; list them with: tokenshard status --address {address}"
        elif "401" in text or "403" in text or "nauthorized" in text:
            text = (
                "wants its token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH where the token "
            )
            text += "is not in ~/.ray/auth_token"
        elif isinstance(error, ConnectionError):
            text = "no Ray job server answers; is it the address of the dashboard (port 8265)?"
        raise JobError(f"{address}: {text[:300]}") from error
