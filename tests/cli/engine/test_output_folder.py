"""What killed runs left is removed, and nothing else."""

from __future__ import annotations

from pathlib import Path

from flowblend_cli.engine.output_folder import sweep


def test_only_our_own_temporary_files_are_removed(tmp_path: Path) -> None:
    final, folder = tmp_path / "clip.mp4", tmp_path / ".flowblend" / "jobs"
    folder.mkdir(parents=True)
    ours = [tmp_path / "clip.mp4.tmp", folder / "clip.json.tmp"]
    kept = [tmp_path / "other.mp4.tmp", folder / "clip.json"]
    for path in (*ours, *kept):
        path.touch()
    sweep(tmp_path, [final])
    assert [path.exists() for path in (*ours, *kept)] == [False, False, True, True]


def test_nothing_is_removed_through_a_link_in_place_of_the_records_folder(tmp_path: Path) -> None:
    victim, output_dir = tmp_path / "victim", tmp_path / "out"
    (victim / "deep").mkdir(parents=True)
    output_dir.mkdir()
    theirs = [victim / "a.tmp", victim / "deep" / "b.tmp"]
    for path in theirs:
        path.touch()
    (output_dir / ".flowblend").symlink_to(victim)
    sweep(output_dir, [])
    assert all(path.exists() for path in theirs)
