"""A cluster of Ray on this machine: a head without room, and nodes for one worker each."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

# Read where Ray is imported: its nodes listen on the loopback alone.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_LISTENS = "0A"


class ThreeNodes:
    """A cluster, whose parts may be killed and come back.

    Args:
        workers: How many nodes there are beside the head.
    """

    def __init__(self, workers: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self._loopback = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 << 20}
        head = {**self._loopback, "num_cpus": 0, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        for _ in range(workers):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, **given: Any) -> None:
        """A node joins."""
        self.nodes.append(self._cluster.add_node(**{**self._loopback, "num_cpus": 1, **given}))

    def remove(self, number: int, *, politely: bool) -> None:
        """A node leaves, or is killed with its object store."""
        node = self.nodes.pop(number)
        if not politely:
            os.kill(raylet_of(node), signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=politely)

    def kill_head(self) -> None:
        """The head is gone, as its machine may be; the driver's node, here the same, stays."""
        head = self._cluster.head_node.all_processes["gcs_server"][0]
        os.kill(head.process.pid, signal.SIGKILL)

    def kill_place(self) -> None:
        """The driver's node is gone with its object store; it is the head's, which goes on."""
        os.kill(raylet_of(self._cluster.head_node), signal.SIGKILL)

    def actors(self) -> list[int]:
        """The processes of this cluster's workers."""
        raylets = {raylet_of(node) for node in (*self.nodes, self._cluster.head_node)}
        return [pid for pid in children(raylets) if b"RayWorker" in command_line(pid)]

    def __enter__(self) -> ThreeNodes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception):  # of what was killed
            self._cluster.shutdown()


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def children(parents: set[int], *, of_all: bool = False) -> list[int]:
    """Processes that these have started, or also those that these have started, and so on."""
    found: list[int] = []
    begun = {pid: parent for pid in all_processes() if (parent := parent_of(pid)) is not None}
    while new := [pid for pid, parent in begun.items() if parent in parents and pid not in found]:
        found += new
        if not of_all:
            break
        parents = set(new)
    return found


def all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def parent_of(pid: int) -> int | None:
    """The parent of a process; None for one that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses at which processes listen."""
    sockets = {link[8:-1] for pid in pids for link in _links(pid) if link.startswith("socket:[")}
    found = set()
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{kind}").read_text("utf-8").splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[9] in sockets:
                found.add(_address(words[1].split(":")[0]))
    return found


def _links(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
    return found


def _address(text: str) -> str:
    """An address as the kernel writes it: words of four bytes, the lowest byte first."""
    packed = b"".join(bytes.fromhex(text[n : n + 8])[::-1] for n in range(0, len(text), 8))
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or address)
    return str(address)
