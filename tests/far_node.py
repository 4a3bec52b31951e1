"""A node of a cluster of Ray, as on a machine of its own: python far_node.py ADDRESS [HIDDEN...].

It is a process with its own mounts, in which hidden folders are empty. It ends with its input.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


def can_hide() -> bool:
    """Whether this user may mount something over folders."""
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def far_node(address: str, *hidden: Path, **environment: str) -> Iterator[None]:
    """A node that lacks some folders, for a while."""
    around = {name: value for name, value in os.environ.items() if name != _LOOPBACK}
    command = [sys.executable, __file__, address, *map(str, hidden)]
    if hidden:
        command = ["unshare", "-m", *command]
    node = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**around, **environment}
    )
    assert node.stdin is not None
    assert node.stdout is not None
    try:
        assert node.stdout.readline() == b"ready\n"
        yield
    finally:
        node.stdin.close()
        try:
            node.wait(60)
        finally:
            node.kill()


_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def main() -> None:
    for folder in sys.argv[2:]:
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    params = RayParams(
        gcs_address=sys.argv[1],
        node_ip_address="127.0.0.1",
        num_cpus=1,
        object_store_memory=150 * 2**20,
        min_worker_port=0,
        max_worker_port=0,
        include_log_monitor=False,
        node_manager_port=0,
    )
    params.dashboard_agent_listen_port = None
    node = Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)


if __name__ == "__main__":
    main()
