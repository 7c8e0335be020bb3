"""A Hugging Face Hub on this machine, as much of it as its real client asks for: repositories, commits, files.

Written from the client's requests. Nothing of ours is in it, so that what is tested is ours and the client's.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    """Files by commit, and commits by the names of branches."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, branch: str, files: Files) -> str:
        parent = self.branches.get(branch, "")
        digest = hashlib.sha1(parent.encode())
        for name, content in sorted(files.items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        self.commits[digest.hexdigest()] = files
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def at(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class LoopbackHub:
    """``repositories`` by ``kind/org/name``. ``torn`` sends half of every file, ``refused`` takes no commit, and
    ``hangs_up`` closes the connection in the middle of one."""

    url: str = ""
    token: str = "hf_loopback"
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    torn: bool = False
    refused: bool = False
    hangs_up: bool = False

    def files(self, name: str, revision: str = "main", kind: str = "models") -> Files:
        """What a repository holds."""
        repository = self.repositories[f"{kind}/{name}"]
        return repository.commits[repository.branches[revision]]

    def put(self, name: str, files: Files, revision: str = "main", kind: str = "models") -> str:
        """A commit without the client; its digest."""
        return self.repositories.setdefault(f"{kind}/{name}", Repository()).commit(revision, files)


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    """A Hub on a free port of this machine."""
    hub = LoopbackHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(401, "Unauthorized", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(branch|preupload|commit)/(.+)", path)
        if found is None:
            return self._error(404, "EntryNotFound", path)
        kind, name, what, revision = found.groups()
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            return self._error(404, "RepoNotFound", "Repository not found")
        if what == "branch":
            repository.branches.setdefault(revision, repository.branches["main"])
            return self._json({})
        if repository.at(revision) is None:
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "preupload":
            how = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": each["path"], **how} for each in json.loads(body)["files"]]})
        if self.hub.hangs_up:
            self.close_connection = True
            return None
        if self.hub.refused:
            return self._error(403, "Forbidden", "the quota of this account is used up")
        return self._commit(repository, name, revision, body)

    def _create(self, wanted: dict[str, Any]) -> None:
        kind, name = f"{wanted.get('type', 'model')}s", f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if f"{kind}/{name}" in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        repository = self.hub.repositories[f"{kind}/{name}"] = Repository(
            private=bool(wanted.get("private")) or wanted.get("visibility") == "private"
        )
        repository.commit("main", {".gitattributes": b""})
        self._json({"url": url, "name": name, "id": name})

    def _commit(self, repository: Repository, name: str, branch: str, body: bytes) -> None:
        files = dict(repository.commits[repository.branches[branch]])
        for line in body.splitlines():
            step = json.loads(line)
            if step["key"] == "file":
                files[step["value"]["path"]] = base64.b64decode(step["value"]["content"])
            elif step["key"] == "deletedFile":
                del files[step["value"]["path"]]
        commit = repository.commit(branch, files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _get(self) -> None:
        path = self._path()
        if path == "/api/whoami-v2":
            return self._json({"name": "me", "type": "user", "orgs": []})
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if found is not None:
            return self._about(*found.groups())
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None:
            return self._error(404, "EntryNotFound", path)
        kind = (found.group(1) or "models/").rstrip("/")
        repository, commit = self._at(kind, found.group(2), found.group(3))
        if repository is not None and commit is not None:
            self._file(repository.commits[commit], commit, found.group(4))

    def _about(self, kind: str, name: str, what: str | None, revision: str | None) -> None:
        repository, commit = self._at(kind, name, revision or "main")
        if repository is None or commit is None:
            return
        files = repository.commits[commit]
        if what == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in files.items()
            ]
            return self._json(entries)
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []})

    def _file(self, files: Files, commit: str, path: str) -> None:
        if path not in files:
            return self._error(404, "EntryNotFound", "Entry not found", commit)
        content = files[path]
        self.send_response(200)
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        if self.hub.torn and self.command == "GET":
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _at(self, kind: str, name: str, revision: str) -> tuple[Repository | None, str | None]:
        """The repository and commit that are asked for; an answer is given where there is none."""
        repository = self.hub.repositories.get(f"{kind}/{name}")
        commit = None if repository is None else repository.at(revision)
        hidden = repository is not None and repository.private
        if repository is None or (hidden and self.headers.get("Authorization") != f"Bearer {self.hub.token}"):
            self._error(404 if repository is None else 401, "RepoNotFound", "Repository not found")
            return None, None
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _error(self, status: int, code: str, message: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
        self._json({"error": message}, status, headers)

    def _json(self, answer: Any, status: int = 200, headers: dict[str, str | None] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
