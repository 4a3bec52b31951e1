"""The local cache of the Hugging Face Hub: where a repository's files are on this machine.

Looking here never asks the network; ``models.hub`` downloads.
"""

from __future__ import annotations

from pathlib import Path


def hub_cache() -> Path:
    """The folder of the local Hub cache, which may not exist."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: str, revision: str | None) -> Path | None:
    """The folder of a repository's commit in the cache: the given one, or the one last fetched.

    Args:
        repo: The Hub id.
        revision: The commit; None for the one that the cache last got.

    Returns:
        The folder, which is named by the commit; None where the cache has no such commit.
    """
    folder = hub_cache() / f"models--{repo.replace('/', '--')}"
    if revision is None:
        try:
            revision = (folder / "refs" / "main").read_text("utf-8").strip()
        except (OSError, ValueError):
            return None
    path = folder / "snapshots" / revision
    return path if revision and "/" not in revision and path.is_dir() else None
