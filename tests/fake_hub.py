"""A Hub on this machine: the few addresses that downloading asks for, and caches as it leaves."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flowblend_cli.models.bundled import bundled_dir

SPRITES = bundled_dir() / "models" / "sprites"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEXT_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
# What is no part of the pipeline lies in real repositories, too.
EXTRAS = {
    "README.md": b"# sprites",
    "pipeline.py": b"raise SystemExit",
    "sprites.safetensors": b"all in one file",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"a variant",
    "transformer/diffusion_pytorch_model.bin": b"a pickle",
}


def sprites_files(*leave_out: str) -> dict[str, bytes]:
    """The bundled pair as a repository: its files by their names."""
    files = {p.relative_to(SPRITES).as_posix(): p for p in SPRITES.rglob("*") if p.is_file()}
    return {
        name: path.read_bytes()
        for name, path in files.items()
        if not name.startswith("adapters/") and name not in leave_out
    }


def etag(data: bytes) -> str:
    """The ETag of a file: SHA-256 of large ones, Git's SHA-1 of small ones."""
    if len(data) > 10_000:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def cache_repo(cache: Path, repo: str, files: Mapping[str, bytes], commit: str = COMMIT) -> Path:
    """Put a repository into a Hub cache, as downloading it leaves it; returns the snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    (folder / "blobs").mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    for name, data in files.items():
        blob = folder / "blobs" / etag(data)
        blob.write_bytes(data)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + name.count("/")), "blobs", blob.name).as_posix())
    return snapshot


@dataclass
class Hub:
    """Repositories to be served, and what was asked.

    Args:
        repos: Files of each repository by name.
        commits: The newest commit of each; every commit has the same files.
        gated: Repositories that answer 403 for files.
        renamed: Former names and the present ones.
        sizes: Sizes that are told of files instead of their own.
        failing: Files that answer 403.
        broken: Whether everything is a failure that repeats the token.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    broken: bool = False
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    endpoint: str = ""

    @property
    def fetched(self) -> list[str]:
        """Names of the files whose contents were sent."""
        parts = (line.split("/resolve/") for line in self.asked if line.startswith("GET"))
        return [part[1].partition("/")[2] for part in parts if len(part) == 2]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        """Answer without the contents."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.add(token)
        status, headers, body = self._find(path, token)
        self.send_response(status, f"no {token}" if hub.broken else None)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _find(self, path: str, token: str) -> tuple[int, dict[str, str], bytes]:
        hub = self.hub
        if hub.broken:
            told = f"the token {token} is bad"
            return 500, {"X-Error-Message": told}, json.dumps({"error": told}).encode()
        is_api = path.startswith("/api/models/")
        repo = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if repo in hub.renamed:
            to = self.path.replace(repo, hub.renamed[repo])
            return 307, {"Location": to}, b""
        files = hub.repos.get(repo)
        if files is None:
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        commit = hub.commits.get(repo, COMMIT)
        if is_api:
            named = path.partition("/revision/")[2]
            commit = named if len(named) == 40 else commit
            sizes = {name: len(data) for name, data in files.items()} | hub.sizes
            siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
            told = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()
        if repo in hub.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        revision, _, name = path.partition("/resolve/")[2].partition("/")
        if name in hub.failing:
            return 403, {}, b""
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        commit = revision if len(revision) == 40 else commit
        data = files[name]
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{etag(data)}"'}, data


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on a port of its own."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
