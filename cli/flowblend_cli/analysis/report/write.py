"""``draw_up`` and ``write``: a folder's report as a page and a JSON file, for two commands."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowblend_cli.analysis.clips.collect import gather
from flowblend_cli.analysis.compare.findings import Report, conclude
from flowblend_cli.analysis.compare.sentences import Sentence
from flowblend_cli.analysis.report import opinions, tables
from flowblend_cli.analysis.report.json_report import to_document, to_text
from flowblend_cli.analysis.report.page import to_html
from flowblend_cli.analysis.review.unblinding import Reviews, read_reviews
from flowblend_cli.errors import UsageError
from flowblend_cli.text import printable
from flowblend_cli.utils.files import open_regular, publish
from flowblend_cli.utils.folders import holding
from flowblend_cli.utils.json_files import NotJson, read_json

PAGE, NUMBERS = "report.html", "report.json"
_LOOKED_AT = 64 * 1024


@dataclass(frozen=True)
class ReportContents:
    """A report and its two files, before they are written.

    Args:
        found: The report.
        said: The reviews; None without any.
        document: The JSON document.
        page: The page, as HTML.
    """

    found: Report
    said: Reviews | None
    document: dict[str, Any]
    page: str


def require_extra() -> None:
    """Check, before a render rather than after it, that a page can be made here.

    Raises:
        UsageError: The extra ``report`` isn't installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise UsageError(
            "a report needs jinja2, which isn't installed: pip install 'flowblend[report]', or "
            "render with --no-report"
        )


def draw_up(folder: Path, reviews: Sequence[Path] = ()) -> ReportContents:
    """Collect a folder's clips, compare them, and make the report's page and document.

    Args:
        folder: The folder.
        reviews: Files that raters saved.

    Raises:
        UsageError: There is nothing to report, or the extra ``report`` isn't installed.
        RatingsError: A rater's file can't be used.
    """
    found = conclude(gather(folder))
    said = read_reviews(folder, reviews) if reviews else None
    return ReportContents(found, said, to_document(found, said), to_html(found, folder, said))


def write(drawn: ReportContents, folder: Path) -> None:
    """Publish ``report.html`` and ``report.json``.

    Raises:
        UsageError: A file of somebody else's has one of these names.
        OutputError: They can't be written.
    """
    contents = {PAGE: drawn.page, NUMBERS: to_text(drawn.document)}
    with holding(folder):
        for name in contents:
            _require_ours(folder / name)
        for name, content in contents.items():
            publish(folder / name, content.encode())


def has_reviews(folder: Path) -> bool:
    """Whether the report that lies in a folder was joined with reviews."""
    try:
        document = read_json(folder / NUMBERS)
    except (OSError, NotJson):
        return False
    return isinstance(document, dict) and "reviews" in document


def sentences(drawn: ReportContents, folder: Path) -> Iterator[str]:
    """The report's sentences and the page's path, as lines for a terminal."""
    for part in drawn.found.parts:
        if len(drawn.found.parts) > 1:
            yield f"{printable(part.section.name)}:"
        yield from map(_sentence, part.sentences)
        yield from tables.printed(part.comparison)
    if drawn.said is not None:
        yield from map(_sentence, opinions.sentences(drawn.said))
    yield f"wrote {printable(folder / PAGE)} and {NUMBERS}"


def _sentence(verdict: Sentence) -> str:
    mark = {"note": "note: ", "warning": "warning: "}.get(verdict.tone, "")
    return mark + printable(verdict.text)


def _require_ours(path: Path) -> None:
    try:
        with open_regular(path, sys.maxsize) as file:
            head = file.read(_LOOKED_AT)
        if b"flowblend report" in head or b'"flowblend":' in head:
            return
    except FileNotFoundError:
        return
    except OSError:
        pass  # a link, a folder, or nobody's to read
    raise UsageError(f"{path} is no report of flowblend's and is left alone: move it away")
