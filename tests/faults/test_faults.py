"""The faults of a bad night, a few of each; ``.ci/run`` runs the whole loops."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowblend_cli.errors import OutputError
from tests.faults import drawn
from tests.faults.survey import Night

ROOT = Path(__file__).resolve().parents[2]


def loop(name: str, *options: str) -> dict[str, Any]:
    """Run one of the loops as a process, and read its verdict."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.faults.{name}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == 0, told["wrong"]
    return told


def test_a_killed_run_leaves_whole_files_and_the_next_one_ends_the_batch() -> None:
    told = loop("kill_publishing", "--kills", "6", "--seed", "7")

    assert told["kills"] == 6
    assert told["batches"] >= 1


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_a_failing_system_call_is_told_and_healed_whichever_it_is() -> None:
    told = loop("inject", "--every", "13")

    assert told["calls"] > 30
    assert told["refused"] > told["unharmed"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def test_a_full_disk_ends_the_batch_and_the_next_run_heals_it(small_disk: Path) -> None:
    batch = drawn.load(drawn.write_recipe(small_disk, 12))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 24 * 1024)
    night = Night(batch.output_dir, drawn.FRAMES)

    code, rendered = drawn.run(batch)

    assert code == OutputError.exit_code
    published = night.look()
    assert 0 < published < 12
    assert night.faults() == {"bad": [], "lost": [], "doubled": [], "left over": []}

    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    code, rendered = drawn.run(batch)

    assert code == 0
    assert len(rendered) == 12 - published
    assert night.look() == 12
    assert not any(night.faults().values())


@pytest.mark.parametrize("name", ["clips", "clips/.flowblend", "clips/.flowblend.lock"])
def test_a_link_where_our_own_files_lie_is_refused_and_leads_nowhere(
    tmp_path: Path, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim / "precious" if name.endswith("lock") else victim)
    batch = drawn.load(drawn.write_recipe(tmp_path, 1))

    if name == "clips/.flowblend":
        assert drawn.run(batch) == (OutputError.exit_code, [])
    else:  # before anything is told
        with pytest.raises(OutputError, match="link"):
            drawn.run(batch)

    assert [path.name for path in victim.iterdir()] == ["precious"]
    assert (victim / "precious").read_text() == "precious"
