"""Checks of ``flowblend doctor``: plain values in, one finding for each topic out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "note", "problem"]

_MIB = 2**20
_TOO_LITTLE_DISK, _LITTLE_DISK = 64 * _MIB, 1024 * _MIB
# Each chooses other kernels than a machine of this kind would take by itself.
_CPU_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR")
_OUR_VALUES = {"MKL_CBWR": "AUTO"}  # set by every process of ours
_FPMATH_VARIABLES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
_TF32_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_WORKSPACES = (":4096:8", ":16:8")
_MAIN_PACKAGES = ("torch", "diffusers", "transformers")
_INSTALL = "pip install "
_OTHER_VERSIONS = "other versions than the tested ones may give other pixels"


@dataclass(frozen=True)
class Finding:
    """The result of the checks of one topic.

    Args:
        name: The topic, one word.
        state: ``"ok"``; ``"note"``, worth knowing where bits matter; ``"problem"``, which stops
            renders or makes them differ from run to run.
        found: What was found.
        advice: What to do, or what follows from it; may be empty.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    def to_document(self) -> dict[str, str]:
        """The finding as plain JSON values."""
        return asdict(self)


def about_versions(
    found: Mapping[str, str | None], python: str, table: Mapping[str, Any]
) -> Iterator[Finding]:
    """Judge Python and the packages against what flowblend needs and was tested with.

    Args:
        found: The installed version of each package; None where there is none.
        python: Version of Python.
        table: The shipped table of versions.
    """
    yield _about_version("python", python, table["python"], _is_minor_of)
    packages = table["packages"]
    for name in _MAIN_PACKAGES:
        yield _about_version(name, found.get(name), packages[name], _is_same)
    others = [
        _about_version(name, found.get(name), wanted, _is_same)
        for name, wanted in packages.items()
        if name not in _MAIN_PACKAGES
    ]
    wrong = [one for one in others if one.state == "problem"]
    if wrong:
        text = ", ".join(f"{one.name} {one.found}" for one in wrong)
        pins = " ".join(one.advice.removeprefix(_INSTALL) for one in wrong)
        yield Finding("packages", "problem", text, _INSTALL + pins)
        return
    other = [f"{one.name} {one.found}" for one in others if one.state == "note"]
    if other:
        text = f"other than tested: {', '.join(other)}"
        yield Finding("packages", "note", text, _OTHER_VERSIONS)
        return
    yield Finding("packages", "ok", f"all {len(others)} others are there, as tested")


def _about_version(
    name: str,
    found: str | None,
    wanted: Mapping[str, Any],
    fits: Callable[[str, str], bool],
) -> Finding:
    install = f"{_INSTALL}{name}=={wanted['tested'][0]}"
    if name == "python":
        install = "make the environment anew with a newer Python"
    if found is None:
        return Finding(name, "problem", "isn't installed", install)
    if _numbers(found) < _numbers(wanted["at_least"]):
        text = f"{found}, and {wanted['at_least']} or newer is needed"
        return Finding(name, "problem", text, install)
    releases = ", ".join(wanted["tested"])
    if any(fits(found, release) for release in wanted["tested"]):
        return Finding(name, "ok", found)
    return Finding(name, "note", f"{found}, tested with {releases}", _OTHER_VERSIONS)


def _is_same(found: str, release: str) -> bool:
    return found.split("+")[0] == release


def _is_minor_of(found: str, release: str) -> bool:
    return _numbers(found)[:2] == _numbers(release)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``(2, 13, 0)`` of ``"2.13.0+cpu"``."""
    numbers = []
    for part in version.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def about_settings(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Judge the settings of torch and diffusers.

    Args:
        settings: What ``flowblend_plugin.numerics.numeric_settings`` text.
        environ: The environment's variables.
    """
    name = f" ({settings['device_name']})" if settings["device_name"] else ""
    text = f'"auto" takes {settings["device"]}{name}, in {settings["dtype"]}'
    yield Finding("device", "ok", text)
    yield _about_threads(settings["threads"], environ)
    yield _about_precision(settings, environ)
    yield _about_onednn(settings, environ)
    yield _about_cpu(settings, environ)
    yield _about_alignment(settings, environ)
    yield _about_attention(settings, environ)
    yield _about_cudnn(settings)
    yield _about_cublas(settings, environ)
    if settings["device"] == "cpu":
        yield Finding(
            "gpu",
            "note",
            "torch sees none here",
            "only a GPU can tell whether renders on it agree, and what they need of its memory: "
            "run flowblend doctor there",
        )


def _about_threads(threads: int, environ: Mapping[str, str]) -> Finding:
    set_to = environ.get("OMP_NUM_THREADS")
    follows = "another number can change pixels; each file records its own (versions.threads)"
    if not set_to:
        advice = f"{follows}: set OMP_NUM_THREADS={threads} wherever the same pixels are wanted"
        return Finding("threads", "note", f"{threads}, as torch chose for this machine", advice)
    if set_to.split(",")[0].strip() != str(threads):
        text = f"torch uses {threads}, although OMP_NUM_THREADS is {set_to!r}"
        return Finding("threads", "note", text, f"{follows}: set it to one whole number")
    return Finding("threads", "ok", f"{threads}, set by OMP_NUM_THREADS", follows)


def _about_precision(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    coarse = [] if settings["matmul_precision"] == "highest" else [settings["matmul_precision"]]
    coarse += [f"{name}={environ[name]}" for name in _TF32_VARIABLES if environ.get(name) == "1"]
    if settings["device"] == "cuda" and settings["cudnn_tf32"]:
        coarse.append("TF32 in cuDNN's convolutions")
    if coarse:
        advice = "same bits here, but other ones than without; leave it as it is within a batch"
        return Finding("precision", "note", f"float32 is rounded: {', '.join(coarse)}", advice)
    return Finding("precision", "ok", "float32 products are float32 (highest)")


def _about_onednn(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    modes = [f"{name}={environ[name]}" for name in _FPMATH_VARIABLES if environ.get(name)]
    coarse = [mode for mode in modes if not mode.upper().endswith("=STRICT")]
    if settings["mkldnn_precision"] in ("bf16", "tf32"):
        coarse.append(f"mkldnn.matmul.fp32_precision={settings['mkldnn_precision']}")
    if coarse:
        advice = "float32 may be computed as bfloat16 or TF32 on CPUs that can: unset it"
        return Finding("onednn", "note", ", ".join(coarse), advice)
    return Finding("onednn", "ok", "float32 stays float32 on this CPU")


def _about_cpu(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    text = f"torch's kernels for {settings['cpu_capability']}"
    forced = [
        f"{name}={value}"
        for name in _CPU_VARIABLES
        if (value := environ.get(name)) and value != _OUR_VALUES.get(name)
    ]
    if forced:
        advice = "files rendered without it may have other pixels: set it everywhere, or nowhere"
        return Finding("cpu", "note", f"{text}; {', '.join(forced)}", advice)
    return Finding("cpu", "ok", text, "a CPU of another kind may give other pixels")


def _about_alignment(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    set_to = f"MKL_CBWR={environ.get('MKL_CBWR', '')}"
    if settings["alignment"]:
        text = f"matrix products agree wherever their matrices lie ({set_to})"
        return Finding("alignment", "ok", text)
    advice = (
        "pixels depend on how weights came into memory, so on offloading, resuming and workers: "
        "export MKL_CBWR=AUTO, or unset it, and flowblend sets it"
    )
    text = f"matrix products differ with the addresses of their matrices ({set_to})"
    return Finding("alignment", "problem", text, advice)


def _about_attention(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    backend, kernel = settings["attention_backend"], settings["attention_kernel"]
    text = f"{backend}, kernel {kernel}" if kernel and backend == "native" else str(backend)
    if backend != "native":
        source = "DIFFUSERS_ATTN_BACKEND" if "DIFFUSERS_ATTN_BACKEND" in environ else "diffusers"
        advice = "other pixels than with the default; a file doesn't record it: set it everywhere"
        return Finding("attention", "note", f"{text}, set by {source}", advice)
    return Finding("attention", "ok", text)


def _about_cudnn(settings: Mapping[str, Any]) -> Finding:
    flags = {
        "benchmark": settings["cudnn_benchmark"],
        "deterministic": settings["cudnn_deterministic"],
        "deterministic algorithms": settings["deterministic_algorithms"],
    }
    text = ", ".join(f"{name} {'on' if is_on else 'off'}" for name, is_on in flags.items())
    if settings["device"] != "cuda":
        return Finding("cudnn", "ok", f"{text}; not used without CUDA")
    if flags["benchmark"]:
        advice = "it picks algorithms by their speed, so runs may differ: switch it off"
        return Finding("cudnn", "problem", text, advice)
    if not (flags["deterministic"] or flags["deterministic algorithms"]):
        advice = "it may pick an algorithm whose sums come in any order; the self-test tries that"
        return Finding("cudnn", "note", text, advice)
    return Finding("cudnn", "ok", text)


def _about_cublas(settings: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    workspace = environ.get("CUBLAS_WORKSPACE_CONFIG")
    text = "CUBLAS_WORKSPACE_CONFIG is " + (workspace or "not set")
    if settings["device"] != "cuda":
        return Finding("cublas", "ok", f"{text}; not used without CUDA")
    if workspace not in _WORKSPACES:
        advice = "cuBLAS promises equal runs with CUBLAS_WORKSPACE_CONFIG=:4096:8"
        return Finding("cublas", "note", text, advice)
    return Finding("cublas", "ok", text)


def about_disk(folder: str, free_bytes: int, reason: str | None) -> Finding:
    """Judge the folder that files would go to.

    Args:
        folder: The folder.
        free_bytes: Free space.
        reason: Why nothing can be written there; None if something can.
    """
    if reason is not None:
        text = f"{folder}: nothing can be written ({reason})"
        return Finding("disk", "problem", text, "choose another folder with render --out DIR")
    text = f"{free_bytes / 1e9:.1f} GB free in {folder}"
    if free_bytes < _TOO_LITTLE_DISK:
        return Finding("disk", "problem", text, "free some, or choose another with --out DIR")
    if free_bytes < _LITTLE_DISK:
        return Finding("disk", "note", text, "a long batch may fill it; render stops with 4 then")
    return Finding("disk", "ok", text)


def about_encoder(problem: str | None) -> Finding:
    """Judge H.264: what went wrong when two frames were encoded and read back, if anything."""
    if problem is None:
        return Finding("h264", "ok", "libx264 encodes, and every frame reads back")
    advice = "clips can't be written (pictures can): pip install -U av"
    return Finding("h264", "problem", problem, advice)


def about_hub(folder: str | None, *, is_there: bool, is_writable: bool) -> Finding:
    """Judge the Hub's cache, which published pairs are read from; None where it can't be told."""
    offline = "render downloads only with --allow-download; `flowblend models fetch` does"
    if folder is None:
        return Finding("hub", "note", "the Hub's cache folder can't be told", offline)
    if not is_there:
        text = f"no cache yet at {folder}"
        return Finding("hub", "note", text, f"{offline}; the bundled pair needs none")
    if not is_writable:
        text = f"{folder} can't be written"
        advice = "what is in it can be used, nothing can be fetched: mend its rights, or HF_HOME"
        return Finding("hub", "note", text, advice)
    return Finding("hub", "ok", f"{folder} can be written", offline)


def about_offline(environ: Mapping[str, str]) -> Finding:
    """Report the variables that keep the network out; flowblend sets HF_HUB_OFFLINE itself."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    text = ", ".join(f"{name}={environ[name]}" for name in names if environ.get(name))
    advice = "flowblend sets HF_HUB_OFFLINE=1 for itself; unset them where you fetch models"
    return Finding("offline", "ok", text or "none is set", advice)


def about_self_test(
    here: list[str], elsewhere: list[str], other: Mapping[str, Any] | None, device: str, steps: int
) -> Iterator[Finding]:
    """Judge renders of one clip of the bundled pair.

    Args:
        here: Hashes of the pixels that one process rendered.
        elsewhere: Those of another process.
        other: ``threads``, and the hash ``pixels`` with that many; None if it wasn't tried.
        device: Where it was rendered.
        steps: Steps of each render.
    """
    hashes = [*here, *elsewhere]
    what = f"{len(hashes)} renders of one seed in 2 processes ({steps} steps, {device})"
    if len(set(hashes)) > 1:
        yield Finding(
            "self-test",
            "problem",
            f"{what} differ: {', '.join(one[:12] for one in hashes)}",
            "nothing rendered here repeats: see the notes above, and try other memory or another "
            "machine",
        )
        return
    yield Finding("self-test", "ok", f"{what} agree in every pixel: {hashes[0][:12]}")
    if other is None:
        return
    threads = f"{other['threads']} thread{'s' if other['threads'] > 1 else ''}"
    if other["pixels"] == hashes[0]:
        yield Finding("thread-test", "ok", f"the same pixels with {threads}")
        return
    yield Finding(
        "thread-test",
        "note",
        f"other pixels with {threads}",
        "keep the number of threads for as long as pixels should stay (OMP_NUM_THREADS)",
    )
