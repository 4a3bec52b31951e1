"""Count FLOPs in a process of its own, so that planning never loads torch.

``python -m flowblend_cli.planning.flops_worker`` reads a JSON list of requests (see
``flops_cache``) on stdin, and writes one JSON line for each, in order: the counts, or the reason
why there are none.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

# A backend for real devices may be set here; shapes need none.
os.environ.pop("DIFFUSERS_ATTN_BACKEND", None)
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
os.environ["DIFFUSERS_VERBOSITY"] = "error"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"


def main() -> None:
    """Answer all requests."""
    answers, sys.stdout = sys.stdout, sys.stderr  # nobody but this writes among the answers
    requests = json.load(sys.stdin)
    try:
        _answer(requests, answers)
    except ImportError as error:
        # Not said to last: what is missing may be installed tomorrow.
        reason = f"counting needs torch and diffusers, which can't be imported ({error})"
        for _ in requests:
            _write(answers, {"reason": reason, "lasting": False})


def _answer(requests: list[dict[str, Any]], answers: TextIO) -> None:
    from flowblend_plugin.flops import Clip, FlopsError, build_denoiser, count_forward

    built: tuple[dict[str, Any] | None, Any] = (None, None)
    for request in requests:
        try:
            if built[0] != request["config"]:
                built = (request["config"], build_denoiser(request["config"]))
            counted = count_forward(built[1], Clip(**request["clip"]))
            _write(answers, {"linear_only": counted.linear_only, "full": counted.full})
        except FlopsError as error:
            _write(answers, {"reason": str(error), "lasting": True})


def _write(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
