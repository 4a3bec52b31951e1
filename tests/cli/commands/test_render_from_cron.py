"""The command as cron and systemd start it: no home, no terminal, no locale, hostile texts."""

from __future__ import annotations

import configparser
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flowblend_cli.artifacts.metadata import read_document
from flowblend_cli.main import main
from flowblend_cli.utils.cache_dirs import cache_path
from tests.naughty import NAUGHTY

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "cron.md").read_text("utf-8")
BARE = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]), "LANG": "C",
        "OMP_NUM_THREADS": "1"}  # fmt: skip
# The installed command for a user without a home, and without an entry in the password file.
HOMELESS = """
import pwd, sys

def missing(number):
    raise KeyError(number)

pwd.getpwuid = missing
from flowblend_cli.main import main
main(prog_name="flowblend")
"""
PROMPTS = [
    NAUGHTY[name]
    for name in ("escape colour", "escape clipboard", "c1 control sequence", "bidi override",
                 "rich markup", "many writings", "emoji", "line feed")
]  # fmt: skip
HARM = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def quoted(text: str) -> str:
    """A TOML string that holds exactly this text."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\u{ord(c[0]):04X}", escaped) + '"'


def recipe(folder: Path, prompts: list[str]) -> Path:
    path = folder / "night.toml"
    path.write_text(
        f"""\
[recipe]
name = "night"

[model]
pipeline = "sprites"

[blend]
stages = "S"

[metrics]
names = []

[defaults]
num_inference_steps = 2
num_frames = 1
height = 32
width = 32
max_sequence_length = 64

[[scene]]
lint = false
name = "naughty"
prompt = [{", ".join(map(quoted, prompts))}]
seeds = [1]
""",
        "utf-8",
    )
    return path


def as_cron_does(*arguments: object, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", HOMELESS, *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, cwd="/", env=BARE,
    )  # fmt: skip


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def wait_for(path: Path, text: str) -> None:
    ends = time.monotonic() + 120
    while not (path.exists() and text in path.read_text("utf-8")):
        assert time.monotonic() < ends, "the log says nothing"
        time.sleep(0.01)


def test_a_night_under_cron_with_a_full_stdout_and_a_log_that_is_rotated(tmp_path: Path) -> None:
    work, log, out = tmp_path / "work", tmp_path / "night.log", tmp_path / "out"
    work.mkdir()
    path = recipe(work, PROMPTS)
    before = (set(os.listdir("/")), tree(work))
    full = os.open("/dev/full", os.O_WRONLY)
    process = as_cron_does("render", path, "--out", out, "--log-file", log, stdout=full)
    os.close(full)
    wait_for(log, "[1/")
    log.rename(tmp_path / "night.log.1")
    _, told = process.communicate(timeout=300)

    assert process.returncode == 0, told
    stderr = told.decode("utf-8")
    assert not HARM.search(stderr)
    (line,) = stderr.splitlines()
    assert line.startswith("error: standard output can't be written (No space left on device)")
    assert (set(os.listdir("/")), tree(work)) == before

    parts = [path.read_text("utf-8") for path in (tmp_path / "night.log.1", log)]
    assert all(parts)
    lines = "".join(parts).splitlines()
    assert not HARM.search("".join(lines))
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    assert sum(bool(re.search(r"Z \[\d+/\d+", line)) for line in lines) == len(PROMPTS)
    assert "8 rendered, 0 already there, 0 failed" in lines[-1]

    documents = [read_document(clip) for clip in out.glob("*.png")]
    assert {d["job"]["prompt"] for d in documents if d} == set(PROMPTS)
    looked = CliRunner().invoke(main, ["status", str(out)])
    assert looked.exit_code == 0
    assert "8 of 8 jobs done, 0 failed, 0 left" in looked.stdout

    again = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", HOMELESS, "render",
         str(path), "--out", str(out)],
        stderr=subprocess.PIPE, cwd="/", env=BARE, check=False,
    )  # fmt: skip
    assert (again.returncode, again.stderr) == (0, b"")


def test_a_bad_recipe_under_cron_is_one_line_for_each_problem_and_code_2(tmp_path: Path) -> None:
    path = recipe(tmp_path, PROMPTS)
    path.write_text(
        path.read_text("utf-8").replace('"naughty"', quoted("\x1b[31mü/\u202e")), "utf-8"
    )
    process = as_cron_does("render", path, "--out", tmp_path / "out", stdout=subprocess.PIPE)
    out, told = process.communicate(timeout=60)

    assert (process.returncode, out) == (2, b"")
    stderr = told.decode("utf-8")
    assert not HARM.search(stderr)
    assert stderr.startswith(f"{path}:")
    assert not (tmp_path / "out").exists()


def test_a_terminal_stays_clean_whatever_prompts_and_paths_hold(tmp_path: Path) -> None:
    path = recipe(tmp_path, [f"{PROMPTS[0]} {PROMPTS[4]}", PROMPTS[1], PROMPTS[3]])
    out = tmp_path / "o\x1b]52;c;aGk=\x07\x1b[31mut"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowblend_cli", "render", str(path), "--out", str(out), "-v"],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**BARE, "TERM": "xterm", "LANG": "C.UTF-8", "HOME": str(tmp_path), "COLUMNS": "300"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536) or b""
        except OSError:
            break
    os.close(ours)

    assert process.wait(60) == 0
    shown = seen.decode("utf-8")
    assert "3 rendered, 0 already there, 0 failed" in shown
    assert "\\x1b[31m ball [/b] [bold]a[/bold]" in shown
    assert "\x1b[?25h" in shown  # the cursor is back
    assert not re.search("\x1b\\]|\x1b\\[31m|[\x07\x80-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_errors_about_a_hostile_model_folder_are_clean(tmp_path: Path) -> None:
    model = tmp_path / "m\x1b[31model"
    shutil.copytree(ROOT / "recipes/models/sprites", model)
    (model / "model_index.json").write_text(
        '{"_class_name": "\\u001b]52;c;aGk=\\u0007\\u202eEvil"}', "utf-8"
    )
    path = recipe(tmp_path, ["a star"])
    named = quoted("./" + model.name)
    text = path.read_text("utf-8").replace('"sprites"', named).replace('"S"', '"L"')
    path.write_text(text, "utf-8")
    log = tmp_path / "log"
    result = CliRunner().invoke(main, ["render", str(path), "--log-file", str(log)])

    assert result.exit_code in (1, 2, 3)
    assert "Evil" in result.stderr
    assert not HARM.search(result.output)
    assert not HARM.search(log.read_text("utf-8"))


def test_a_user_without_a_home_has_no_cache_and_leaves_no_litter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import pwd

    def missing(number: int) -> object:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", missing)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(OSError, match="Not a directory"):
        cache_path("flops", "a.json").parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_path("hashes.json") == Path("/home/somebody/.cache/flowblend/hashes.json")


def documented() -> list[str]:
    """Every command line of ours on the page."""
    found = re.findall(r"(?:^|[ =/])flowblend ((?:render|status) /.*)", PAGE, re.MULTILINE)
    return [line.split(" > ")[0].split(" || ")[0].rstrip("`") for line in found]


def test_the_documented_command_lines_are_understood() -> None:
    lines = documented()
    assert len(lines) >= 4
    for line in lines:
        if "..." in line:
            continue
        name, *arguments = shlex.split(line)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, arguments, resilient_parsing=False)


def test_the_documented_units_are_units() -> None:
    service, timer = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    parsed = []
    for text in (service, timer):
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        parsed.append(unit)

    assert "75" in parsed[0]["Service"]["SuccessExitStatus"].split()
    assert parsed[0]["Service"]["Type"] == "oneshot"
    assert parsed[1]["Timer"]["OnCalendar"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't here")
def test_systemd_accepts_the_documented_units(tmp_path: Path) -> None:
    service, timer = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    service = service.replace("/srv/flowblend/.venv/bin/flowblend", "/bin/true")
    (tmp_path / "flowblend-harbour.service").write_text(service.replace("User=flowblend\n", ""))
    (tmp_path / "flowblend-harbour.timer").write_text(timer)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
