"""A hub on the loopback interface: the few routes that huggingface_hub asks for, over folders of this machine."""

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

COMMIT, OLDER = "a" * 40, "b" * 40
REVISIONS = {"main": COMMIT, "v1": OLDER, COMMIT: COMMIT, OLDER: OLDER}
TOKEN = "hf_secret"


@dataclass
class Hub:
    """The repositories by name, each a folder by commit, and what was asked for."""

    repositories: Mapping[str, Mapping[str, Path]]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    def fetched(self) -> set[str]:
        """Names of the files that were downloaded."""
        paths = (line.partition(" ")[2] for line in self.asked if line.startswith("GET ") and "/resolve/" in line)
        return {path.partition("/resolve/")[2].partition("/")[2] for path in paths}


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve a hub until the block ends."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        self.hub.tokens.add(self.headers.get("Authorization"))
        parts = path.removeprefix("/api/models").strip("/").split("/", 4)
        name, kind, revision = "/".join(parts[:2]), *parts[2:4]
        if name == "tiny/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body=body)
        repository = self.hub.repositories.get(name.replace("gated", "open"))
        if repository is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
        commit = REVISIONS.get(revision)
        if commit is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body=body)
        folder = repository[commit]
        if kind == "resolve":
            return self._file(folder / parts[4], commit, body=body)
        answers = {"revision": {"id": name, "sha": commit, "siblings": []}, "tree": list(_tree(folder))}
        return self._send(200, json.dumps(answers[kind]).encode(), {"Content-Type": "application/json"}, body=body)

    def _file(self, path: Path, commit: str, *, body: bool) -> None:
        data = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(data)}"'}
        self._send(200, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _tree(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        yield {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
