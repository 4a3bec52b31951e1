"""HTML pages for reports and reviews: one file each, which loads nothing but clips beside it.

Start with ``render_page``. Templates, scripts and styles lie in this folder. ``player.html.j2``,
``player.css`` and ``player.js`` are the clips that play in step, for every page that shows some.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from flowblend_cli.errors import UsageError
from flowblend_cli.text import printable

if TYPE_CHECKING:
    import jinja2


def render_page(
    template: str,
    *,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """Fill in one page that holds its scripts and styles, and may load nothing but clips.

    The template gets, beside ``values``, ``policy`` (for a meta tag ``Content-Security-Policy``),
    ``scripts`` and ``styles`` (texts, to be put between tags with nothing around them). Text that a
    template shows is made printable and escaped, and None shows as nothing.

    Args:
        template: Name of a template of this folder.
        scripts: Names of this folder's scripts, in their order.
        styles: Names of its styles.
        filters: Functions that the template may call as filters, by name.
        values: What the template shows; what it puts into scripts goes through ``tojson``.

    Returns:
        The page.

    Raises:
        UsageError: The extra ``report`` isn't installed.
    """
    shown_scripts, shown_styles = list(map(_read, scripts)), list(map(_read, styles))
    environment = _environment()
    environment.filters.update(filters or {})
    return environment.get_template(template).render(
        values,
        scripts=shown_scripts,
        styles=shown_styles,
        policy=content_policy(shown_scripts, shown_styles),
    )


def content_policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The content security policy of a page: its own scripts and styles, and files beside it.

    Args:
        scripts: Text of every inline script, exactly as between its tags.
        styles: Text of every inline style, likewise.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_sources(scripts)}",
            f"style-src {_sources(styles)}",
            "img-src 'self' data:",
            "media-src 'self' blob:",  # blob: a clip in memory, from a server that can't seek
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _sources(texts: Sequence[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"


def _read(name: str) -> str:
    return (files(__name__) / name).read_text("utf-8")


def _shown(value: Any) -> Any:
    """A value as a template shows it: None as nothing, plain text without control characters."""
    if value is None:
        return ""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value


def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise UsageError(
            "pages need jinja2, which isn't installed: pip install 'flowblend[report]'"
        ) from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("flowblend_cli.analysis", "web"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
