"""Worker process that counts FLOPs, so that planning never loads torch.

``python -m flowblend_cli.planning.flops_worker`` is handed one document with ``requests`` (see
``flops_cache``), and answers each with one, in order: the counts, or the reason why there are none.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from flowblend_cli.utils.worker_process import Channel

# A backend for real devices may be set here; shapes need none.
os.environ.pop("DIFFUSERS_ATTN_BACKEND", None)
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def main() -> None:
    """Answer all requests."""
    channel = Channel()
    asked = channel.receive()
    requests = [] if asked is None else asked["requests"]
    try:
        _answer(requests, channel.send)
    except ImportError as error:
        # Not said to last: what is missing may be installed tomorrow.
        reason = f"counting needs torch and diffusers, which can't be imported ({error})"
        for _ in requests:
            channel.send({"reason": reason, "lasting": False})


def _answer(requests: list[dict[str, Any]], send: Callable[[dict[str, Any]], None]) -> None:
    from flowblend_plugin.flops import Clip, FlopsError, build_denoiser, count_forward

    built: tuple[dict[str, Any] | None, Any] = (None, None)
    for request in requests:
        try:
            if built[0] != request["config"]:
                built = (request["config"], build_denoiser(request["config"]))
            counted = count_forward(built[1], Clip(**request["clip"]))
            send({"linear_only": counted.linear_only, "full": counted.full})
        except FlopsError as error:
            send({"reason": str(error), "lasting": True})


if __name__ == "__main__":
    main()
