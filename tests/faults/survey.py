"""What a folder of finished files looks like after a fault.

Whatever happened, every visible final must decode to its last frame and hold its own checksum. A
final that was published must never be written again; its inode would show that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import av

from flowblend_cli.artifacts.finished import FileState, inspect_final


@dataclass
class Night:
    """What a folder has held so far.

    Args:
        folder: The output folder.
        frames: Frames that every clip must have.
        published: Inode of each final name when it was first seen.
        bad: Finals that weren't whole.
        lost: Finals that were there and aren't any more.
        doubled: Finals that were written a second time.
    """

    folder: Path
    frames: int
    published: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def look(self) -> int:
        """Judge every visible final; returns how many there are."""
        finals = {path.name: path for path in self.folder.glob("*.mp4")}
        for name, path in finals.items():
            inode = path.stat().st_ino
            if self.published.get(name) == inode:
                continue
            if name in self.published:
                self.doubled.append(name)
            self.published[name] = inode
            if (
                inspect_final(path).state is not FileState.INTACT
                or count_frames(path) != self.frames
            ):
                self.bad.append(name)
        self.lost += [name for name in self.published if name not in finals]
        return len(finals)

    def leftovers(self) -> list[str]:
        """Temporary files, and whatever else a finished batch must not leave."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.suffix == ".tmp" or "checkpoints" in path.parts[len(self.folder.parts) : -1]
        )

    def faults(self) -> dict[str, list[str]]:
        """Everything that must be empty."""
        return {
            "bad": self.bad,
            "lost": self.lost,
            "doubled": self.doubled,
            "left over": self.leftovers(),
        }


def count_frames(path: Path) -> int:
    """Frames that really decode."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def pixels(folder: Path) -> dict[str, str]:
    """The recorded hash of each clip's frames, by name."""
    found = {}
    for path in sorted(folder.glob("*.mp4")):
        with av.open(str(path)) as container:
            found[path.name] = str(json.loads(container.metadata["comment"])["pixels_sha256"])
    return found
