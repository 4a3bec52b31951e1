"""find_devices: the devices of this machine that a list names."""

from __future__ import annotations

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
    there = _count()
    if not devices:
        named = [device_name(kind, n) for kind, number in there.items() for n in range(number)]
        return parse_devices(",".join(named) or "cpu")
    missing = [device for device in devices if not device.index < there.get(device.kind, 0)]
    if missing:
        names = ", ".join(dict.fromkeys(device_name(one.kind, one.index) for one in missing))
        seen = ", ".join(
            device_name(kind, n) for kind, number in there.items() for n in range(number)
        )
        raise UsageError(
            f"{names} isn't there: torch sees {seen or 'the CPU alone'} on this machine"
        )
    return devices


def _count() -> dict[str, int]:
    """How many devices of each kind torch sees, asked in a process of its own."""
    answers, problem = run_worker(_MODULE, {}, name="device", patience_s=_PATIENCE_S)
    if not answers:
        raise UsageError(f"this machine can't be looked at: {problem}")
    found: dict[str, int] = answers[0]["devices"]
    return found
