"""Names that are safe as file names, and the template that makes a job's name.

No recipe can make a job's name leave the output folder: it holds no separator, no control
character, no ``..`` and no drive letter.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from flowblend_cli.text import is_unsafe

MAX_NAME_BYTES = 200
# A job's id, which may say more than the name that it was given: -draft, -adapt2, .again.
MAX_ID_BYTES = 240
# Free text in a file name.
MAX_VALUE_BYTES = 40
DEFAULT_TEMPLATE = "{scene}-s{seed}-n{num_inference_steps}"
FIXED_FIELDS = (
    "scene",
    "seed",
    "num_inference_steps",
    "prompt_index",
    "prompt_words",
    "prompt_id",
    "stages",
)

_FORBIDDEN = frozenset('/\\:*?"<>|')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_WORDS = re.compile(r"[^\W_]+")
_DOTS = re.compile(r"\.{2,}")
_NOT_IN_VALUE = re.compile(r"[^\w.+-]+")


def check_name(name: str, most_bytes: int = MAX_NAME_BYTES) -> str:
    """Return a name that is safe as a file's stem on every system.

    Args:
        name: The name.
        most_bytes: Most bytes that it may have.

    Raises:
        ValueError: It is empty, too long, or holds what could leave the folder or confuse a shell.
    """
    if not name.strip():
        raise ValueError("must not be empty")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > most_bytes:
        raise ValueError(f"must be at most {most_bytes} bytes as a file name, got {size}")
    bad = sorted(_FORBIDDEN.intersection(name))
    if bad:
        raise ValueError(f"must not hold {' '.join(bad)}, got {name!r}")
    is_plain = name.isascii() and name.isprintable()
    if not is_plain and any(is_unsafe(character) for character in name):
        raise ValueError(f"must not hold control characters, got {name!r}")
    if ".." in name or name.startswith((".", "~")) or name != name.strip(" ") or name[-1] == ".":
        raise ValueError(
            f"must not start with a dot or ~, end with a dot, hold .. or have spaces around it, "
            f"got {name!r}"
        )
    if _RESERVED.fullmatch(name):
        raise ValueError(f"must not be a reserved device name, got {name!r}")
    return name


def check_job_id(name: str) -> str:
    """Return the id of a job, which is its file's stem.

    Raises:
        ValueError: See ``check_name``.
    """
    return check_name(name, MAX_ID_BYTES)


def check_template(template: str) -> str:
    """Return a file name template whose fields are plain names.

    Raises:
        ValueError: Unbalanced braces, or a field with attributes, indices or formats.
    """
    for field in template_fields(template):
        if not field.isidentifier():
            raise ValueError(
                f"must use plain fields such as {{scene}} or {{seed}}, got {{{field}}}; write "
                "{{ and }} for literal braces"
            )
    return template


def template_fields(template: str) -> list[str]:
    """The fields of a template, in order; anything but a plain name comes back as written.

    Raises:
        ValueError: Unbalanced braces.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"must have balanced braces, got {template!r} ({error}); write {{{{ and }}}} for "
            "literal braces"
        ) from error
    return [
        field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, field, spec, conversion in parts
        if field is not None
    ]


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Fill a checked template; text from the recipe enters as one safe value only.

    Raises:
        ValueError: The name would be unsafe.
    """
    parts = []
    for literal, field in _parts(template):
        parts.append(literal)
        if field is not None:
            parts.append(fields[field] if field == "scene" else safe_value(fields[field]))
    return check_name("".join(parts))


@lru_cache(maxsize=64)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template's literal texts, each with the field that follows it."""
    return tuple((literal, field) for literal, field, _, _ in string.Formatter().parse(template))


def safe_value(value: Any) -> str:
    """Write a value so that it can stand in a file name: ``[0.4, 0.8]`` becomes ``0.4_0.8``."""
    if type(value) is int:
        return str(value)
    if isinstance(value, (list, tuple)):
        return "_".join(safe_value(item) for item in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _DOTS.sub(".", _NOT_IN_VALUE.sub("_", text)).strip("._") or "_"


def short_value(value: str) -> str:
    """Write free text for a file name; where that loses something, a part of its hash is added."""
    safe = safe_value(value)
    cut = safe.encode()[:MAX_VALUE_BYTES].decode("utf-8", "ignore")
    if cut == value.replace(" ", "_"):
        return cut
    return f"{cut.strip('._')}-{text_id(value, 6)}"


def text_id(text: str, digits: int = 10) -> str:
    """The first hexadecimal digits of a text's hash."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def slug(text: str, most_bytes: int = MAX_VALUE_BYTES) -> str:
    """The first words of a text, small and joined by hyphens; ``"prompt"`` where it has none."""
    made = ""
    for match in _WORDS.finditer(text.casefold()):
        longer = f"{made}-{match[0]}" if made else match[0]
        if len(longer.encode("utf-8", "surrogatepass")) > most_bytes:
            break
        made = longer
    return made or "prompt"


def same_file_key(name: str) -> str:
    """A key that two names share if some file system takes them for one: by case, Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def default_template(varying: Iterable[str]) -> str:
    """The template for jobs that also vary along further axes, one field each."""
    return DEFAULT_TEMPLATE + "".join(f"-{key}{{{key}}}" for key in varying)
