"""Names that stay inside a folder; how files are published is tested in tests/cli/artifacts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flowblend_cli.utils.files import UnsafeName, read_regular, resolve_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a folder and links inside, and a file beside it."""
    (tmp_path / "secret.txt").write_text("outside")
    folder = tmp_path / "inside"
    (folder / "below").mkdir(parents=True)
    (folder / "plain.txt").write_text("inside")
    (folder / "below/link.txt").symlink_to("../plain.txt")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle.txt").symlink_to("circle.txt")
    (folder / "inside").symlink_to(".")
    return folder


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("plain.txt", "plain.txt"),
        ("./plain.txt", "plain.txt"),
        ("below/link.txt", "plain.txt"),
        ("inside/plain.txt", "plain.txt"),
        ("below/none.txt", "below/none.txt"),
        ("below", "below"),
        (".", "."),
        ("..plain.txt", "..plain.txt"),
        ("a..b/c~", "a..b/c~"),
        ("ab: c.txt", "ab: c.txt"),
        ("data.txt", "data.txt"),
        ("two words.txt", "two words.txt"),
        ("\u6c34.txt", "\u6c34.txt"),
    ],
)
def test_a_name_inside_the_folder_leads_to_one_absolute_path(
    folder: Path, name: str, target: str
) -> None:
    assert resolve_inside(name, folder) == (folder / target).resolve()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", "characters"),
        (" ", "characters"),
        ("a\0.txt", "characters"),
        ("plain.txt\0", "characters"),
        ("a\x1b[31m.txt", "characters"),
        ("a\n.txt", "characters"),
        ("a\u202etxt.exe", "characters"),
        ("a\ud800.txt", "characters"),
        ("http://127.0.0.1:9/plain.txt", "address"),
        ("HTTPS:plain.txt", "address"),
        ("file:///etc/passwd", "address"),
        ("file:plain.txt", "address"),
        ("s3://bucket/plain.txt", "address"),
        ("data:text/plain;base64,AAAA", "address"),
        ("DATA:,a", "address"),
        ("..", "outside"),
        ("../secret.txt", "outside"),
        ("below/../plain.txt", "outside"),
        ("below/../../secret.txt", "outside"),
        ("below/..", "outside"),
        ("/etc/passwd", "outside"),
        ("//server/share/a.txt", "outside"),
        ("~", "outside"),
        ("~/plain.txt", "outside"),
        ("~root/plain.txt", "outside"),
        ("C:\\plain.txt", "outside"),
        ("C:/plain.txt", "outside"),
        ("c:plain.txt", "outside"),
        ("below\\plain.txt", "outside"),
        ("..\\secret.txt", "outside"),
        ("\\\\server\\share", "outside"),
        ("out.txt", "outside"),
        ("up/secret.txt", "outside"),
        ("up", "outside"),
        ("up/inside/../secret.txt", "outside"),
        ("circle.txt", "lookup"),
        ("circle.txt/a", "lookup"),
        ("x" * 5000, "lookup"),
        ("x" * 300, "lookup"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_by_its_kind(
    folder: Path, name: str, kind: str
) -> None:
    with pytest.raises(UnsafeName) as caught:
        resolve_inside(name, folder)

    assert caught.value.kind == kind
    assert bool(caught.value.reason) == (kind == "lookup")


def test_an_absolute_name_is_refused_even_if_it_leads_inside(folder: Path) -> None:
    with pytest.raises(UnsafeName):
        resolve_inside(str(folder / "plain.txt"), folder)


def test_a_folder_that_is_a_link_itself_is_followed(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)

    assert resolve_inside("plain.txt", link) == (folder / "plain.txt").resolve()


def test_nothing_is_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")  # opening it would wait for ever

    assert resolve_inside("pipe", folder) == (folder / "pipe").resolve()


LIMIT = 1000


def test_a_plain_file_within_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"x" * LIMIT)
    assert read_regular(path, LIMIT) == b"x" * LIMIT


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    real = path.parent / "real"
    real.write_bytes(b"{}")
    path.symlink_to(real)


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 * 2**30)


def make_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_fifo, "no plain file"),
        (Path.mkdir, "no plain file"),
        (make_link, "symbolic link"),
        (make_zero, "symbolic link"),
        (make_large, "larger than 1,000 bytes"),
    ],
)
def test_what_is_no_small_plain_file_is_refused_before_a_byte_is_read(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "record.json"
    make(path)
    with pytest.raises(OSError, match=reason):
        read_regular(path, LIMIT)


def test_a_link_that_somebody_named_is_followed_to_a_plain_file_only(tmp_path: Path) -> None:
    make_link(tmp_path / "record.json")
    assert read_regular(tmp_path / "record.json", LIMIT, follow=True) == b"{}"
    make_zero(tmp_path / "zero.json")
    with pytest.raises(OSError, match="no plain file"):
        read_regular(tmp_path / "zero.json", LIMIT, follow=True)


@pytest.mark.parametrize("linked", [".flowblend", ".flowblend/jobs"])
def test_no_link_inside_an_output_folder_is_followed(tmp_path: Path, linked: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "jobs").mkdir(parents=True)
    for place in (elsewhere, elsewhere / "jobs"):
        (place / "a.json").write_bytes(b"{}")
    out = tmp_path / "out"
    (out / linked).parent.mkdir(parents=True)
    (out / linked).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        read_regular(out / ".flowblend/jobs/a.json", LIMIT)
    # The folder itself may be reached by a link: whoever named it chose that.
    (tmp_path / "by-link").symlink_to(elsewhere)
    assert read_regular(tmp_path / "by-link/jobs/a.json", LIMIT) == b"{}"
