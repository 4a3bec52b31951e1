"""Every script of examples/ runs as README says, from the repository's root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_blends(script: Path, tmp_path: Path) -> None:
    target = tmp_path / "clip.gif"
    done = subprocess.run(
        [sys.executable, str(script), str(target), "5"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{target} large large small small large"
    with Image.open(target) as clip:
        assert (clip.size, clip.n_frames) == ((64, 64), 17)


def test_the_script_in_readme_runs_to_its_saved_clip(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    script = next(code for code in readme.split("```python\n")[1:]).split("```")[0]
    assert "from_pretrained" in script
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with av.open(str(tmp_path / "star.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 17
    assert frames[0][..., 2].mean() > frames[0][..., 1].mean()  # the background is navy


def test_every_example_is_in_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert EXAMPLES
    assert all(f"examples/{path.name}" in readme for path in EXAMPLES)
