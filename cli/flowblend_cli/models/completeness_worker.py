"""Worker process that tells whether components are whole, so that a check never loads torch.

``python -m flowblend_cli.models.completeness_worker`` is handed one document with ``requests`` (see
``completeness`` and ``prompt_length``), and answers each with one, in order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowblend_cli.utils.worker_process import Channel


def main() -> None:
    """Answer all requests."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    channel = Channel()
    asked = channel.receive()
    for request in [] if asked is None else asked["requests"]:
        channel.send(answer(request))


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the faults of a component or an index; no ``faults`` where they can't be told here."""
    try:
        from flowblend_plugin.completeness import (
            config_fault,
            index_faults,
            store_tokenizer,
            tensor_faults,
        )

        if "tokenizer" in request:
            library, kind, folder, path = request["tokenizer"]
            store_tokenizer(library, kind, Path(folder), Path(path))
            return {}
        if "index" in request:
            return {"faults": index_faults(request["index"])}
        about = (request["library"], request["kind"], Path(request["folder"]))
        if request["has_tensors"]:
            return {"faults": tensor_faults(*about, request["shapes"], request.get("dtypes"))}
        problem = config_fault(*about)
        return {"faults": [{"problem": problem}] if problem else []}
    except Exception as error:  # noqa: BLE001 - what libraries raise where they aren't whole
        return {"reason": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
