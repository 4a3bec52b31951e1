"""Finder: looks for each job's finished file, and says whether its name may be written to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flowblend_cli.artifacts.finished import FileState, Finished, inspect_final
from flowblend_cli.artifacts.manifest import Entry, Manifest, fingerprint, matches
from flowblend_cli.errors import DocumentError
from flowblend_cli.jobs import Job


@dataclass(frozen=True)
class Existing:
    """The file at the final name of a job.

    Args:
        done: The entry of its finished file; None where there is none of this very job.
        is_damaged: Whether a damaged file of this recipe lies there, which may be replaced.
        edited: What has changed in a file of this recipe that lies there, in words that follow
            "it": it is to be kept under another name; empty for none.
        obstacle: The reason why nothing may be written there, and the way out; empty for none.
    """

    done: Entry | None = None
    is_damaged: bool = False
    edited: str = ""
    obstacle: str = ""


class Finder:
    """Looks for the finished files of a batch.

    Args:
        manifest: The folder's manifest; None to inspect every file.
        verify: Look into the files that the manifest knows, too.
    """

    def __init__(self, manifest: Manifest | None, *, verify: bool = False) -> None:
        self._manifest = manifest
        self._verify = verify

    def find(self, job: Job, path: Path, key: str) -> Existing:
        """Find out whether a job is done, and if it isn't, whether its file may be written.

        The manifest counts only where it says that the job is done; otherwise the file itself is
        inspected.

        Args:
            job: The job.
            path: Its file.
            key: Its job key.

        Raises:
            OutputError: The file can't be read.
        """
        known = self._manifest.entry(path.name) if self._manifest is not None else None
        is_ours = known is not None and (known.recipe, known.job_key) == (job.recipe, key)
        if known is not None and is_ours and not self._verify and matches(known, path):
            return Existing(known)
        # Taken first: a file that changes during the inspection is inspected by the next run, too.
        mark = fingerprint(path) if self._manifest is not None else None
        found = inspect_final(path)
        owner = _other_owner(found, job)
        if owner:
            return Existing(
                obstacle=f"{path} belongs to {owner} and is left alone: move it away, or change "
                "recipe.output_dir or recipe.filename"
            )
        if found.state is FileState.EDITED:
            return Existing(edited=found.change)
        document = found.document or {}
        if found.state is not FileState.INTACT or document.get("job_key") != key:
            return Existing(is_damaged=found.state is FileState.DAMAGED)
        from flowblend_cli.artifacts.schema.description import PublishedDocument, ResolvedDocument

        try:  # the job is this one, as the key says
            said = ResolvedDocument.read(document.get("resolved", {}))
            pixels = PublishedDocument.read(document).pixels_sha256
        except DocumentError as error:
            return Existing(edited=f"has a record that can't be used ({error})")
        size, digest = mark or (0, None)
        entry = Entry(
            file=path.name,
            size=size,
            sha256=digest or "",
            recipe=job.recipe,
            job_key=key,
            pixels_sha256=pixels,
            seed=job.seed if said.seed is None else said.seed,
            sampling_s=said.sampling_s or 0.0,
        )
        if self._manifest is not None and digest is not None:
            self._manifest.note(entry)
        return Existing(entry)

    def published(
        self, job: Job, path: Path, key: str, *, pixels: str, seed: int, sampling_s: float
    ) -> None:
        """Note a file that was published just now.

        Args:
            job: Its job.
            path: The file.
            key: Its job key.
            pixels: Hash of its frames.
            seed: Seed of its noise.
            sampling_s: Seconds for sampling and decoding.
        """
        if self._manifest is None:
            return
        mark = fingerprint(path)
        if mark is not None and mark[1] is not None:
            size, digest = mark[0], mark[1]
            recipe = job.recipe
            entry = Entry(path.name, size, digest, recipe, key, pixels, seed, sampling_s)
            self._manifest.note(entry)

    def close(self) -> None:
        """Close the manifest."""
        if self._manifest is not None:
            self._manifest.close()


def _other_owner(found: Finished, job: Job) -> str:
    """The owner of a file that isn't this recipe's; empty for a file of this recipe, or none."""
    if found.state is FileState.MISSING:
        return ""
    known = found.recipe is not None or found.state is FileState.INTACT
    if known and found.recipe != job.recipe:
        return f"recipe {found.recipe!r}"
    return "someone else" if found.state is FileState.FOREIGN else ""


def present_files(folder: Path) -> set[str]:
    """Names of the files in a folder; none where it can't be read."""
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError:
        return set()
