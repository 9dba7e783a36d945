"""Whether a Ray cluster can be reached and used from here."""

from __future__ import annotations

from typing import Any

import ray

from tokenshard.engine.ray import connect
from tokenshard.engine.submit import Cluster
from tokenshard.spec.engine import EngineSpec

_ray: Any = ray


def cluster_facts(address: str) -> str:
    """What the cluster at an address is. ``http://…``: its job server, else (HOST:PORT, auto) the cluster itself.

    Raises JobError, or SpecError where Ray's job client is not installed, with what to do.
    """
    if address.startswith(("http://", "https://")):
        return f"job server at {address}: {len(Cluster(address).jobs())} jobs known"
    leave = connect(EngineSpec(kind="ray", address=address))
    try:
        resources = _ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in _ray.nodes())
        said = f"{nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
        return f"{address}: {said}, Ray {ray.__version__}"
    finally:
        if leave:
            _ray.shutdown()
