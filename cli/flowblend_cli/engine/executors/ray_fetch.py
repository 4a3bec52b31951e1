"""fetch_on_nodes: fetches models on every machine of a cluster, into the Hub cache of each."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowblend_cli.engine.executors.ray_cluster import Cluster
from flowblend_cli.engine.run_options import RunOptions
from flowblend_cli.models.hub.fetch import fetch
from flowblend_cli.models.hub.requirements import Requirement
from flowblend_cli.models.hub_cache import hub_cache
from flowblend_cli.text import shorten
from flowblend_plugin.errors import FlowBlendError


@dataclass(frozen=True)
class NodeFetch:
    """What became of fetching on one machine.

    Args:
        host: The machine.
        cache: Its Hub cache; empty where it has none of the models.
        problem: What went wrong, one or more lines; empty where all is there.
        exit_code: What a command exits with because of that.
    """

    host: str
    cache: str = ""
    problem: str = ""
    exit_code: int = 0


def fetch_on_nodes(requirements: Sequence[Requirement], address: str) -> list[NodeFetch]:
    """Fetch parts of repositories on all machines of a cluster at once.

    Args:
        requirements: The parts, with their commits.
        address: The cluster, as Ray writes it; empty for one on this machine.

    Returns:
        What became of it on each machine.

    Raises:
        UsageError: Ray isn't installed, or the cluster isn't there.
    """
    cluster = Cluster(RunOptions(executor="ray", address=address))
    try:
        import ray

        wanted = [asdict(one) for one in requirements]
        found = []
        for host, running in [*cluster.on_nodes(_fetch_here, wanted)]:
            try:
                found.append(NodeFetch(**ray.get(running)))
            except Exception as error:  # noqa: BLE001 - whatever a cluster makes of a loss
                reason = str(error).strip().split("\n")[-1]  # a traceback, of an error there
                told = f"models can't be fetched there ({shorten(reason, 160)})"
                found.append(NodeFetch(host, problem=told, exit_code=3))
        return found
    finally:
        cluster.leave()


def _fetch_here(requirements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a machine of the cluster does."""
    host = platform.node()
    try:
        fetch([Requirement(**one) for one in requirements], lambda text: None)
    except FlowBlendError as error:
        told = NodeFetch(host, problem=str(error), exit_code=getattr(error, "exit_code", 3))
    else:
        told = NodeFetch(host, str(hub_cache()))
    return asdict(told)
