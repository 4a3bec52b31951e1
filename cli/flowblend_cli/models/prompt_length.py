"""unread_words: the end of a prompt that a pipeline's text encoders cut off, told without torch.

A tokenizer is a small file. One that is stored in another form than ``tokenizer.json`` is turned
into that once, by a worker process, and kept.
"""

from __future__ import annotations

import hashlib
import html
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowblend_cli.models.contents import INDEX, components, read_json
from flowblend_cli.models.hub_cache import snapshot
from flowblend_cli.models.pipeline_rules import rule_table
from flowblend_cli.models.registry import resolve_model
from flowblend_cli.utils.cache_dirs import cache_path
from flowblend_cli.utils.worker_process import run_worker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ARGUMENT = "max_sequence_length"
_SPECIAL = 8  # more tokens than any post-processor adds to a text
_NO_LIMIT = 100_000
_PATIENCE_S = 300
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")


@dataclass(frozen=True)
class _Reader:
    """One text encoder's tokenizer, and how many of a prompt's tokens it keeps."""

    tokenizer: str
    folder: Path
    library: str
    kind: str
    limit: str

    def most(self, max_sequence_length: int) -> int | None:
        """Tokens that are kept; None where nothing limits them."""
        if self.limit == _ARGUMENT:
            return max_sequence_length
        if self.limit.isdecimal():
            return int(self.limit)
        config = read_json(self.folder / "tokenizer_config.json")
        most = config.get("model_max_length")
        return most if isinstance(most, int) and 0 < most < _NO_LIMIT else None


@dataclass(frozen=True)
class PromptReaders:
    """What reads the prompts of a pipeline.

    Args:
        pipeline_class: The pipeline's class.
        text_tokens: Its default of ``max_sequence_length``.
        template: The text that it puts around prompts, with ``{}`` for the prompt.
        start: Tokens at the beginning of that text that are dropped afterwards.
        cleans: Whether it mends broken characters and doubled spaces first.
        readers: The tokenizers.
    """

    pipeline_class: str
    text_tokens: int
    template: str
    start: int
    cleans: bool
    readers: tuple[_Reader, ...]

    def unread(self, prompt: str, max_sequence_length: int | None = None) -> tuple[str, int] | None:
        """Tell the words of a prompt that no text encoder reads.

        Args:
            prompt: The prompt.
            max_sequence_length: The job's own; None for the pipeline's default.

        Returns:
            The words, and how many tokens are read at most; None where all are read, or where the
            tokenizers aren't on this machine.
        """
        most = max_sequence_length or self.text_tokens
        limits = [(reader, reader.most(most)) for reader in self.readers]
        whole = max(len(prompt), len(unicodedata.normalize("NFKC", prompt).encode())) + _SPECIAL
        whole += 0 if self.start else len(self.template.encode())
        if not limits or any(limit is None or whole <= limit for _, limit in limits):
            return None
        text = clean(prompt) if self.cleans else prompt
        read, tokens = 0, 0
        for reader, limit in limits:
            tokenizer = _tokenizer(reader)
            if tokenizer is None or limit is None:
                return None
            # Only what the argument limits stands in the template.
            is_framed = bool(self.template) and reader.limit == _ARGUMENT
            template, start = (self.template, self.start) if is_framed else ("{}", 0)
            end = _end_of_text(tokenizer, text, template, start + limit)
            if end >= read:
                read, tokens = end, limit
        if read >= len(text.rstrip()):
            return None
        while read > 0 and not text[read - 1].isspace() and not text[read].isspace():
            read -= 1  # a word that is cut in the middle isn't read
        return text[read:].strip(), tokens


@cache
def prompt_readers(pipeline: str, recipe_dir: Path) -> PromptReaders | None:
    """Find what reads the prompts of a pipeline; None where that isn't known, or isn't here.

    Args:
        pipeline: The pipeline as the recipe names it.
        recipe_dir: Folder that relative folders start from.

    Raises:
        ModelNameError: The name is no model.
    """
    source = resolve_model(pipeline, recipe_dir)
    folder = source.path or (snapshot(source.repo, source.revision) if source.repo else None)
    row = rule_table().get(source.pipeline_class or "")
    if folder is None or row is None or source.pipeline_class is None:
        return None
    readers = tuple(_readers(folder, row))
    return PromptReaders(
        source.pipeline_class,
        row.get("text_tokens") or 0,
        row.get("template", ""),
        row.get("start", 0),
        row.get("cleans", False),
        readers,
    )


def _readers(folder: Path, row: Mapping[str, Any]) -> Iterator[_Reader]:
    parts = components(read_json(folder / INDEX))
    for name, limit in row.get("readers", ()):
        if name in parts and (folder / name).is_dir():
            yield _Reader(name, folder / name, *parts[name], limit)


def clean(text: str) -> str:
    """Mend a prompt as Wan's pipelines do: broken characters, HTML's entities, doubled spaces."""
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", mended).strip()


def _end_of_text(tokenizer: Tokenizer, text: str, template: str, limit: int) -> int:
    """Where in a text the tokens end that are kept, of all that its template makes."""
    before, _, after = template.partition("{}")
    encoding = tokenizer.encode(before + text + after)
    offsets = [
        offset
        for offset, is_added in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        if not is_added
    ]
    kept = limit - (len(encoding.offsets) - len(offsets))
    if kept >= len(offsets):
        return len(text)
    end = offsets[kept - 1][1] if kept > 0 else 0
    return max(0, min(end - len(before), len(text)))


@cache
def _tokenizer(reader: _Reader) -> Tokenizer | None:
    """A tokenizer without truncation; None where its files can't be used."""
    import tokenizers

    path = reader.folder / "tokenizer.json"
    try:
        if not path.is_file():
            path = _kept_form(reader)
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - whatever broken files make it raise; the model's check tells
        return None
    found.no_truncation()
    found.no_padding()
    return found


def _kept_form(reader: _Reader) -> Path:
    """The file of a tokenizer in the form that ``tokenizers`` reads, made where there is none."""
    digest = hashlib.sha256(reader.kind.encode())
    for path in sorted(reader.folder.iterdir()):
        if path.suffix in _TOKENIZER_SUFFIXES and path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    kept = cache_path("tokenizers", f"{digest.hexdigest()}.json")
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        request = {"tokenizer": [reader.library, reader.kind, str(reader.folder), str(kept)]}
        if "torch" in sys.modules:  # a process that has it already needs no other one
            from flowblend_cli.models import completeness_worker

            completeness_worker.answer(request)
        else:
            module = "flowblend_cli.models.completeness_worker"
            requests = {"requests": [request]}
            run_worker(module, requests, name="tokenizer", patience_s=_PATIENCE_S)
    return kept
