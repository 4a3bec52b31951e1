"""Foreign settings: finds in a prompt the flags, and the text below a picture, of other programs.

Midjourney's and diffusers scripts' ``--flags``, InvokeAI's ``-W 512``, and what A1111 writes with
its pictures (``Negative prompt: ...``, ``Steps: 20, Sampler: Euler``). A dash before words is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from flowblend_cli.recipe.schema.foreign_names import our_name
from flowblend_cli.recipe.schema.tables import SETTINGS

_NUMBER = r"[+-]?(?:\d+\.\d*|\.\d+|\d+)"
# Flags by their names without punctuation, where ``foreign_names`` has other keys, or none.
_FLAGS = {
    "f": "num_frames", "d": "seeds of a [[scene]]", "s": "num_inference_steps",
    "l": "guidance_scale", "g": "guidance_scale", "n": "negative_prompt", "fs": "flow_shift",
    "i": "image of a [[scene]]", "ar": "width and height", "aspect": "width and height",
    "q": "num_inference_steps", "quality": "num_inference_steps", "no": "negative_prompt",
    "v": "pipeline", "version": "pipeline", "niji": "pipeline", "r": "repeats of a [[scene]]",
    "repeat": "repeats of a [[scene]]", "iw": "strength",
}  # fmt: skip
_NOWHERE = (
    "chaos", "c", "stylize", "weird", "style", "sref", "cref", "oref", "sw", "cw", "ow", "tile",
    "raw", "fast", "relax", "turbo", "hd", "stop", "exp", "draft", "motion", "loop", "stealth",
    "uplight", "upbeta", "creative", "p", "profile", "test", "testp",
)  # fmt: skip
# Where keys stand that no [defaults] has.
_PLACES = {
    "pipeline": "[model]", "small": "[model]", "dtype": "[model]", "offload": "[model]",
    "scheduler": "[sampling]", "flow_shift": "[sampling]", "crf": "[output]",
    "container": "[output]", "output_dir": "[recipe]", "filename": "[recipe]",
}  # fmt: skip
_WITH_TEXT = ("n", "no", "neg", "negative", "negativeprompt", "negprompt", "style", "sampler")
_ALONE = ("tile", "raw", "fast", "relax", "turbo", "hd", "draft", "hiresfix", "seamless", "loop")
_LONG_FLAG = re.compile(
    r"(?:(?<=\s)|^)(?:--|[\u2013\u2014])(?P<name>[A-Za-z][\w-]*)"
    r"(?:(?:[ \t]+|[ \t]*=[ \t]*)(?P<value>[^\s,]+))?",
    re.MULTILINE,
)
_VALUE = re.compile(rf"{_NUMBER}(?:[:x*]{_NUMBER})?[.,]?|true|false", re.IGNORECASE)
# InvokeAI's, and those of the first scripts of Stable Diffusion.
_SHORT = {
    "W": "width", "w": "width", "H": "height", "h": "height", "s": "num_inference_steps",
    "S": "seeds of a [[scene]]", "C": "guidance_scale", "c": "guidance_scale",
    "n": "seeds or repeats of a [[scene]]", "A": "scheduler in [sampling]",
    "d": "seeds of a [[scene]]", "l": "guidance_scale",
}  # fmt: skip
_SHORT_FLAG = re.compile(
    rf"(?<=\s)-(?:(?P<name>[WwHhsSCcndl])(?:[ =]+{_NUMBER}|(?<=[WHwhsSC])\d+(?:\.\d+)?)"
    r"|(?P<sampler>A)[ =]?(?:k_)?(?:ddim|plms|euler|heun|lms|dpm|dpmpp)\w*)(?=[\s,]|\Z)"
)
_NEGATIVE = re.compile(
    r"(?:^|(?<=[,.;]))[ \t]*Negative[ _]prompt[ \t]*:", re.MULTILINE | re.IGNORECASE
)
_SHOUTED = re.compile(r"^[ \t]*/(?:imagine|dream)\b(?:[ \t]+prompt:)?", re.MULTILINE)
_PAIR = re.compile(
    r"(?:^|(?<=[,;\n]))[ \t]*(?P<key>Steps|Sampler(?: name)?|Scheduler?(?: type)?|CFG(?: scale)?"
    r"|Guidance(?: scale)?|Seed|Size|Width|Height|Model(?: hash)?|VAE|Denoising strength|Clip skip"
    r"|ENSD|Hires \w+|Frames|Num frames|FPS|Lora hashes|Version|Batch size)[ \t]*:[ \t]*"
    r"(?P<value>[^,;\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMERIC = re.compile(rf"{_NUMBER}(?:[ \t]*[x\u00d7][ \t]*\d+)?[ \t]*", re.IGNORECASE)
_BEHIND = re.compile(r"(?P<syntax>\0)?(?<=[\s\0])[ \t]*(?P<comment>(?:#|//)[ \t]+[^\s\d].*)")
_JSON_STARTS = ("{", "[")

Found = tuple[int, int, str, bool]


def find_settings(text: str) -> Iterator[Found]:
    """Find settings in a prompt whose own syntax is blanked: place, end, message, certainty."""
    yield from _flags(text)
    for match in _SHORT_FLAG.finditer(text):
        yield *match.span(), _advice("flag", _SHORT[match["name"] or match["sampler"]]), True
    for match in _NEGATIVE.finditer(text):
        start = match.end() - len(match.group().lstrip())
        yield start, match.end(), _advice("line", "negative_prompt"), True
    for match in _SHOUTED.finditer(text):
        yield *match.span(), "is a command of a chat: take it out", True
    yield from _pairs(text)
    for match in _BEHIND.finditer(text):
        if match["comment"].startswith("#") or match["syntax"]:
            message = "is no comment here: put it on a line of its own, or take it out"
            yield *match.span("comment"), message, match["syntax"] is not None


def _flags(text: str) -> Iterator[Found]:
    for match in _LONG_FLAG.finditer(text):
        written, value = match["name"].lower(), match["value"]
        name, is_dash = re.sub(r"[^a-z0-9]", "", written), not match.group().startswith("--")
        glued = re.fullmatch(rf"(w|h|f|d|s|l|g|fs){_NUMBER}", written)
        meant = _meant(glued[1] if glued else written)
        if meant is None and name not in _NOWHERE:
            continue
        rest = text[match.end("name") :].lstrip()
        is_alone = name in _ALONE and (not rest or rest.startswith("--"))
        has_text = bool(value) and name in _WITH_TEXT and not _is_aside(rest)
        if glued or is_alone:
            if not is_dash:
                yield match.start(), match.end("name"), _advice("flag", meant), True
        elif (value and _VALUE.fullmatch(value)) or (has_text and not is_dash):
            yield *match.span(), _advice("flag", meant), True


def _meant(flag: str) -> str | None:
    """What a flag is called here; None where it is no such flag, or nothing takes its place."""
    name, key = re.sub(r"[^a-z0-9]", "", flag), flag.replace("-", "_")
    return _FLAGS.get(name) or (key if key in SETTINGS else our_name(flag))


def _is_aside(rest: str) -> bool:
    """Whether a second dash ends what the first one began: "he said --no way-- and left"."""
    return re.search(r"\w--(?=\W|\Z)|\s--\s", rest) is not None


def _pairs(text: str) -> Iterator[Found]:
    """``Key: value`` of A1111, certain where there are two of them, one with a number."""
    pairs = list(_PAIR.finditer(text))
    numeric = [_NUMERIC.fullmatch(match["value"]) is not None for match in pairs]
    for match, is_number in zip(pairs, numeric, strict=True):
        is_certain = len(pairs) > 1 and any(numeric)
        if is_certain or is_number:
            span = match.start("key"), match.end()
            yield *span, _advice("setting", our_name(match["key"])), is_certain


def _advice(kind: str, ours: str | None) -> str:
    if ours is None or ours.startswith("here "):
        return f"is another program's {kind}, and nothing here takes it: take it out"
    where = f" in {_PLACES.get(ours, '[defaults] or the [[scene]]')}" if " " not in ours else ""
    return f"is another program's {kind}, and would be text: write it as {ours}{where}"


def json_problem(text: str) -> str | None:
    """What is wrong with a text that is JSON instead of a prompt; None where it is none."""
    if not text.lstrip().startswith(_JSON_STARTS):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not value or not isinstance(value, dict | list) or not _has_table(value):
        return None
    words = f"write its prompt as text, and its settings as keys{_known(value)}"
    return f"is JSON{_kind_of(value)}: {words}"


def _has_table(value: Any) -> bool:
    return isinstance(value, dict) or all(isinstance(one, dict) for one in value)


def _tables(value: Any) -> Iterator[dict[str, Any]]:
    tables = [value] if isinstance(value, dict) else value
    for table in tables:
        yield table
        yield from (one for one in table.values() if isinstance(one, dict))


def _kind_of(value: Any) -> str:
    keys = {key for table in _tables(value) for key in table}
    if keys & {"class_type", "nodes", "last_node_id"}:
        return ", a workflow of ComfyUI"
    if keys & {"samples_save", "sd_model_checkpoint", "CLIP_stop_at_last_layers"}:
        return ", the settings of A1111"
    return ""


def _known(value: Any) -> str:
    """The words that are used here for what stands in it, such as ``(steps is ...)``."""
    keys = dict.fromkeys(str(key) for table in _tables(value) for key in table)
    named = [(key, our_name(key)) for key in keys]
    told = [f"{key} is {ours}" for key, ours in named if ours and not ours.startswith("here ")]
    return f" ({'; '.join(told[:4])})" if told else ""
