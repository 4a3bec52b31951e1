from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowblend_cli import __version__, main
from flowblend_cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}

PROBE = """
import json, sys
from flowblend_cli import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    heavy = [name for name in ("torch", "diffusers", "transformers") if name in sys.modules]
    print(json.dumps([done.code, heavy, "pydantic" in sys.modules]), file=sys.stderr)
"""


def flowblend(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowblend_cli", *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def test_help_lists_every_command_with_a_line_of_its_own() -> None:
    result = CliRunner().invoke(main, ["--help"])

    assert result.exit_code == 0
    for name, line in COMMANDS.items():
        assert f"  {name}" in result.output
        assert line in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_starts_as_its_line_says(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])

    assert result.exit_code == 0, result.output


def test_the_version_is_the_packages() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"flowblend, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["check", "quickstart"], ["plan", "quickstart", "--json"], ["schema"],
     ["recipes", "ls"], ["init", "--pipeline", "sprites", "-o", "{tmp}/new.toml"],
     ["init", "--pipeline", "a/b", "--small", "c/d", "-o", "{tmp}/hub.toml"]],
)  # fmt: skip
def test_no_model_library_is_imported_before_a_render(arguments: list[str], tmp_path: Path) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]

    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip

    code, heavy, knows_pydantic = json.loads(done.stderr.splitlines()[-1])
    assert (code, heavy) == (0, [])
    assert knows_pydantic == (arguments != ["--help"] and arguments != ["recipes", "ls"])


@pytest.mark.parametrize(
    "arguments", [["--nope"], ["nope"], ["plan"], ["check"], ["init"], ["plan", "a", "b"]]
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)

    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["plan", "check"])
def test_a_recipes_problems_go_to_stderr_unwrapped_with_exit_code_2(
    command: str, recipe_file: Callable[[str], Path], minimal: str
) -> None:
    path = recipe_file(minimal.replace("= 10", "= 0").replace('"LSL"', '"XXXXX"'))

    done = flowblend(command, str(path))

    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == [
        f"{path}:8:10:",
        f"{path}:12:23:",
    ]


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"a = ["])
def test_a_file_that_is_no_recipe_is_one_clear_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)

    done = flowblend("check", str(path))

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(str(path))


def test_a_prompts_escape_sequences_never_reach_the_terminal(
    recipe_file: Callable[[str], Path], minimal: str
) -> None:
    path = recipe_file(minimal.replace("a red", "\\u001b]52;c;x\\u0007 \\u009b31m \\u202e [/b]"))

    shown = flowblend("plan", str(path)).stdout
    document = json.loads(flowblend("plan", str(path), "--json").stdout)

    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "\\x1b]52;c;x\\x07" in shown
    assert document["jobs"][0]["prompt"].startswith("\x1b]52;c;x\x07")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_one_line_and_exit_code_4() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowblend_cli", "schema"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, check=False,
        )  # fmt: skip

    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_closed_at_the_start_are_no_error(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m flowblend_cli check quickstart {closed}', sys.executable],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("" if ">&-" in closed.split() else "OK quickstart")


@pytest.mark.parametrize("arguments", [["check", "none"], ["nope"], ["--help"]])
def test_exit_codes_are_kept_without_any_stream(arguments: list[str]) -> None:
    command = 'exec "$0" -m flowblend_cli "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *arguments], env=ENVIRONMENT, check=False
    )

    assert done.returncode == (0 if arguments == ["--help"] else 2)


WRITER = """
import os, subprocess, sys
from flowblend_cli.main import main
@main.command()
def write():
    with open(sys.argv[1], "w") as file:
        os.write(1, b"from a library")
        os.write(2, b"from another")
        print("from the command", flush=True)
        print("from the command", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-c", "print(1)"], check=True)
        file.write("mine")
main.get_command = lambda ctx, name: write
main(["write"])
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_nothing_meant_for_a_closed_stream_ends_up_in_a_file(closed: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, WRITER, tmp_path / "file"],
        capture_output=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip

    assert done.returncode == 0
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def pipeline_folder(path: Path, layers: int, **vae: object) -> Path:
    """A pipeline's folder as far as looking at it goes: configs only."""
    denoiser = {"_class_name": "WanTransformer3DModel", "in_channels": 16, "num_layers": layers}
    configs = {
        "model_index.json": {"_class_name": "WanPipeline"},
        "transformer/config.json": denoiser,
        "vae/config.json": {"_class_name": "AutoencoderKLWan", **vae},
    }
    for name, config in configs.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(json.dumps(config), "utf-8")
    return path


@pytest.mark.parametrize(
    ("large", "small", "mismatch"),
    [
        ({"z_dim": 16}, {"z_dim": 48}, "vae z_dim: large 16, small 48"),
        ({"latents_mean": [0.0]}, {"latents_mean": [0.5]}, "vae latents_mean: large [0.0], small"),
        (
            {"z_dim": 16},
            {"_class_name": "AutoencoderKL"},
            "vae _class_name: large AutoencoderKLWan",
        ),
        ({"z_dim": 16}, {"z_dim": 16}, None),
        ({"z_dim": 16, "latents_mean": [0.5]}, {"z_dim": 16}, None),  # left out: the default
    ],
)
def test_init_compares_the_latent_spaces_of_two_pipeline_folders(
    tmp_path: Path, large: dict[str, object], small: dict[str, object], mismatch: str | None
) -> None:
    path = tmp_path / "new.toml"
    folders = [
        str(pipeline_folder(tmp_path / "large", 4, **large)),
        str(pipeline_folder(tmp_path / "small", 2, **small)),
    ]

    result = CliRunner().invoke(
        main, ["init", "--pipeline", folders[0], "--small", folders[1], "-o", str(path)]
    )

    assert result.exit_code == (2 if mismatch else 0), result.output
    assert path.exists() == (mismatch is None)
    assert mismatch is None or mismatch in result.stderr


def test_init_asks_nothing_of_a_denoisers_bare_folder(tmp_path: Path) -> None:
    large = pipeline_folder(tmp_path / "large", 4, z_dim=16)
    small = pipeline_folder(tmp_path / "small", 2, z_dim=48) / "transformer"
    path = tmp_path / "new.toml"

    result = CliRunner().invoke(
        main, ["init", "--pipeline", str(large), "--small", str(small), "-o", str(path)]
    )

    assert result.exit_code == 0, result.output
    assert "the pair fits" in result.stdout


SLEEPER = """
import sys, time, click
from flowblend_cli.main import main
@main.command()
def sleep():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("unwound", flush=True)
main.get_command = lambda ctx, name: sleep
main(["sleep"])
"""


@pytest.mark.parametrize(
    ("number", "code", "before"),
    [
        (signal.SIGINT, 130, signal.SIG_DFL),
        (signal.SIGTERM, 143, signal.SIG_DFL),
        (signal.SIGINT, 130, signal.SIG_IGN),  # as a shell starts a job with &
    ],
)
def test_a_signal_unwinds_and_has_its_own_exit_code(
    number: signal.Signals, code: int, before: signal.Handlers
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)

    assert process.returncode == code
    assert stdout == "unwound\n"
    assert "Traceback" not in stderr


def test_a_command_run_inside_of_another_program_leaves_its_signal_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    CliRunner().invoke(main, ["--version"])

    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_help_takes_at_most_two_and_a_half_times_its_libraries() -> None:
    def seconds(code: str) -> float:
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code], env=ENVIRONMENT, check=True, capture_output=True
            )
            runs.append(time.perf_counter() - start)
        return min(runs)

    libraries = seconds("import click, rich, pydantic")
    entry = seconds("import flowblend_cli; flowblend_cli.main(['--help'], standalone_mode=False)")

    assert entry <= 2.5 * libraries
