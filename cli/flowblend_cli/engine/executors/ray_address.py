"""find_cluster: where a cluster of Ray is, and whether it can be joined from here, within seconds.

Ray itself tries for minutes, and says what it does on standard error. So a process of its own looks
first: ``python -m`` with this module's name is handed ``address``, and sends ``address`` and
``is_loopback``, or ``problem``.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, cast

from flowblend_cli.errors import UsageError
from flowblend_cli.text import shorten
from flowblend_cli.utils.worker_process import Channel, run_worker

_MODULE = "flowblend_cli.engine.executors.ray_address"
_PATIENCE_S = 20.0
_CONNECT_S = 3.0
_FORMS = "write --address auto on a machine of the cluster, or its head's HOST:PORT"


def find_cluster(address: str) -> tuple[str, bool]:
    """Find a cluster, and see that it answers, and that this machine is one of its nodes.

    Args:
        address: ``"auto"``, or ``"HOST:PORT"``.

    Returns:
        Its address, and whether it is on the loopback of this machine alone.

    Raises:
        UsageError: It can't be used; says why and what to do.
    """
    if "://" in address:
        raise UsageError(
            f"--address: {address!r} isn't supported, since frames would go through one more "
            f"machine: {_FORMS}, or send the whole command there (ray job submit -- flowblend ...)"
        )
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536
    if address != "auto" and not (host and is_port):
        raise UsageError(f"--address: {address!r} is no address: {_FORMS}")
    answers, problem = run_worker(
        _MODULE, {"address": address}, name="cluster check", patience_s=_PATIENCE_S
    )
    found = answers[0] if answers else {"problem": f"it doesn't answer as Ray does ({problem})"}
    if "problem" in found:
        raise UsageError(f"--address: no cluster of Ray can be used at {address}: "
                         f"{found['problem']}")  # fmt: skip
    return str(found["address"]), bool(found["is_loopback"])


def main() -> None:
    """Look for a cluster."""
    channel = Channel()
    given = channel.receive()
    assert given is not None
    try:
        channel.send(_look(given["address"]))
    except Exception as error:  # noqa: BLE001 - told in words
        channel.send({"problem": shorten(str(error).strip().split("\n")[0], 200)})


def _look(address: str) -> dict[str, Any]:
    from ray import _raylet as raylet
    from ray._private import services as given

    core, services = cast("Any", raylet), cast("Any", given)

    if address == "auto":
        address = services.get_ray_address_from_environment("auto", None)
    host, _, port = address.rpartition(":")
    own = services.node_ip_address_from_perspective(None)
    hosts = [own, "127.0.0.1"] if _is_loopback(host) else [host.strip("[]")]
    found = next((one for one in hosts if _listens(one, int(port))), None)
    if found is None:
        return {"problem": f"nothing listens at {address}"}
    listening = f"{found}:{port}" if ":" not in found else f"[{found}]:{port}"
    nodes = core.GcsClient(address=listening).get_all_node_info(timeout=5)
    alive = {node.node_manager_address for node in nodes.values() if node.state == 0}
    is_loopback = _is_loopback(found)
    if (found if is_loopback else own) not in alive:
        return {
            "problem": f"this machine ({own}) is none of its nodes: run ray start "
            f"--address={listening} here first, or this command on one of them"
        }
    return {"address": listening, "is_loopback": is_loopback}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _CONNECT_S).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
