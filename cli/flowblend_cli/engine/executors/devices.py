"""find_devices: the devices of this machine that a list names."""

from __future__ import annotations

from collections.abc import Mapping

from flowblend_cli.errors import UsageError
from flowblend_cli.utils.devices import Device, device_name, parse_devices
from flowblend_cli.utils.worker_process import run_worker

_MODULE = "flowblend_cli.engine.runtime.count_devices"
_PATIENCE_S = 300.0


def find_devices(text: str) -> tuple[Device, ...]:
    """Read a list of devices, and look at the machine: they are all there.

    Args:
        text: The list, see ``parse_devices``. ``"all"`` names every GPU, and where there is none
            the CPU.

    Raises:
        UsageError: It isn't such a list, or names what isn't there.
    """
    devices = parse_devices(text)
    if devices and all(device.kind == "cpu" for device in devices):
        return devices
    return choose_devices(devices, _count())


def choose_devices(devices: tuple[Device, ...], there: Mapping[str, int]) -> tuple[Device, ...]:
    """See that devices are there; none asked for stand for every GPU, or else for the CPU.

    Args:
        devices: Those asked for.
        there: How many of each kind there are, the CPU among them.

    Raises:
        UsageError: One isn't there.
    """
    kinds = [(kind, number) for kind, number in there.items() if kind != "cpu"]
    gpus = [device_name(kind, n) for kind, number in kinds for n in range(number)]
    if not devices:
        return parse_devices(",".join(gpus) or "cpu")
    missing = [device for device in devices if not device.index < there.get(device.kind, 0)]
    if missing:
        names = ", ".join(dict.fromkeys(device_name(one.kind, one.index) for one in missing))
        raise UsageError(
            f"--devices: {names} isn't there: torch sees {', '.join(gpus) or 'the CPU alone'} on "
            "this machine"
        )
    return devices


def _count() -> dict[str, int]:
    """How many devices of each kind torch sees, asked in a process of its own."""
    answers, problem = run_worker(_MODULE, {}, name="device", patience_s=_PATIENCE_S)
    if not answers:
        raise UsageError(f"this machine can't be looked at: {problem}")
    found: dict[str, int] = answers[0]["devices"]
    return found
