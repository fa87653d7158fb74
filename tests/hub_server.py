"""A local server that speaks the Hub's protocol, and calls in processes that talk to it.

It has the endpoints for downloads, new repositories, branches, uploads (git LFS) and commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The commit that every branch `main` is at before anything is pushed."""
OWNER, TOKEN = "me", "hf_of_me"
"""The only user, and the token with which this user may write."""
Files = dict[str, bytes]
CALLS = """
import json, sys
import rankwise
from rankwise import hub
from rankwise.errors import RankwiseError
hub.SECONDS, notes, answers = 0.5, [], []
for call in json.loads(sys.argv[1]):
    notes.clear()
    try:
        value = eval(call)
    except RankwiseError as e:
        value = {"error": type(e).__name__, "message": e.message, "hint": e.hint}
    answers.append({"value": value, "notes": list(notes)})
print(json.dumps(answers, default=lambda x: x.model_dump() if hasattr(x, "model_dump") else str(x)))
"""


class Hub(ThreadingHTTPServer):
    """The Hub, with the files in `repos`; `asked` records all paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, Files] = {}
        self.branches: dict[str, dict[str, Files]] = {}  # repository -> branch besides main -> files
        self.refusals: dict[str, tuple[int, str]] = {}
        self.private: dict[str, bool] = {}
        self.full = False  # whether commits are refused
        self.messages: list[str] = []
        self.heads: dict[tuple[str, str], str] = {}  # repository, branch -> commit after a push
        self.large: dict[str, bytes] = {}  # SHA-256 -> content of an uploaded file
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def find(self, name: str, revision: str) -> tuple[str, Files] | None:
        """Branch and files of a branch or commit; None if there is none. Older commits are not kept."""
        for branch, files in {"main": self.repos[name], **self.branches.get(name, {})}.items():
            if revision in (branch, self.head(name, branch)):
                return branch, files
        return None

    def head(self, name: str, branch: str) -> str:
        """The commit that a branch is at."""
        return self.heads.get((name, branch), COMMIT if branch == "main" else _oid(branch.encode()))


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, rest = self._repository()
        if name in self.server.refusals:
            status, code = self.server.refusals[name]
            return self._send(status, b"{}", {"X-Error-Code": code})
        if name not in self.server.repos:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if rest[:1] and rest[0] in ("resolve", "revision", "tree") else "main"
        at = self.server.find(name, revision)
        if at is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        found, commit = at[1], self.server.head(name, at[0])
        if rest[:1] == ["resolve"]:
            return self._file(found, "/".join(rest[2:]), commit)
        if rest[:1] == ["tree"]:
            tree = [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in found.items()]
            return self._json(tree)
        return self._json({"id": name, "modelId": name, "sha": commit})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name, rest = self._repository()
        if self.path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, b'{"error": "Invalid credentials"}', {})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if name.partition("/")[0] != OWNER:
            return self._send(403, b"{}", {})
        if name.endswith(".git"):
            objects = json.loads(body)["objects"]
            return self._json({"objects": [each | self._place(each["oid"]) for each in objects]})
        if rest[0] == "preupload":
            return self._json({"files": [_mode(each["path"]) for each in json.loads(body)["files"]]})
        if rest[0] == "branch":
            branches = self.server.branches.setdefault(name, {})
            if rest[1] in branches:
                return self._send(409, b"{}", {})
            branches[rest[1]] = dict(self.server.repos[name])
            return self._json({})
        assert rest[0] == "commit"
        if self.server.full:
            return self._send(413, b'{"error": "No more space"}', {})
        return self._commit(name, rest[1], [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.large[self.path.removeprefix("/lfs/")] = body
        self._json({})

    def _repository(self) -> tuple[str, list[str]]:
        """(OWNER/NAME, the rest of the path)."""
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)
        parts = path.removeprefix("api/models/").split("/")
        return "/".join(parts[:2]), parts[2:]

    def _place(self, oid: str) -> dict[str, Any]:
        """Where to upload a large file."""
        return {"actions": {"upload": {"href": f"{self.server.url}/lfs/{oid}"}}}

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != OWNER:
            return self._send(403, b'{"error": "You don\'t have the rights to create a model"}', {})
        assert name not in self.server.repos
        self.server.repos[name] = {}
        visibility = wanted.get("visibility", "private" if wanted.get("private") else "public")
        self.server.private[name] = visibility == "private"
        return self._json({"url": f"{self.server.url}/{name}", "name": name})

    def _commit(self, name: str, revision: str, lines: list[dict[str, Any]]) -> None:
        at = self.server.find(name, revision)
        if at is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        branch, found = at
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                found[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                found[value["path"]] = self.server.large[value["oid"]]
        commit = _oid(str(len(self.server.messages)).encode())
        self.server.heads[name, branch] = commit
        return self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def _file(self, found: Files, path: str, commit: str) -> None:
        if path not in found:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self._send(200, found[path], {"ETag": f'"{_oid(found[path])}"', "X-Repo-Commit": commit})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A server that runs until the block ends."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def python(script: str, home: Path, *arguments: str, **settings: str) -> Any:
    """What a script prints as JSON, in a new process with an empty home and these environment variables.

    The Hub client reads its settings on import.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=clean | quiet | {"HF_HOME": str(home), "PYTHONPATH": str(SOURCE)} | settings,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answers(calls: list[str], home: Path, **settings: str) -> list[dict[str, Any]]:
    """The value, or the error, of each expression, and what was added to `notes` while it was computed."""
    found: list[dict[str, Any]] = python(CALLS, home, json.dumps(calls), **settings)
    return found
