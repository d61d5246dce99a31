"""A small Hugging Face hub on this machine: what downloads and uploads ask of it.

Repositories are folders of whole commits in memory. Files travel as "regular" ones;
LFS and Xet, which the real hub uses for large files, are not imitated.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any


class Hub:
    """Repositories by name: commits by sha, the newest under "main".

    Attributes:
        commits: For each OWNER/NAME, files by path for each sha.
        newest: For each OWNER/NAME, sha of its newest commit.
        private: Of each, as asked when it was made.
        tokens: That came with requests that write.
        silent: Whether a request for a file is left without an answer.
        damaged: Content that is served in place of that of a (OWNER/NAME, path).
        address: http://localhost:PORT
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.newest: dict[str, str] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str | None] = set()
        self.damaged: dict[tuple[str, str], bytes] = {}
        self.silent = False
        self.address = ""

    def commit(self, repo: str, files: dict[str, bytes]) -> str:
        """Makes these files the newest commit; returns its sha."""
        text = json.dumps([(k, _oid(v)) for k, v in sorted(files.items())])
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits.setdefault(repo, {})[sha] = files
        self.newest[repo] = sha
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Content by path; KeyError if there is no such repository or revision."""
        return self.commits[repo][self.sha(repo, revision)]

    def sha(self, repo: str, revision: str = "main") -> str:
        """Of a revision."""
        return self.newest[repo] if revision == "main" else revision

    def apply(self, repo: str, lines: list[dict[str, Any]]) -> str:
        """A commit as the client sends it."""
        files = dict(self.files(repo))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "header", line
        return self.commit(repo, files)


def _oid(content: bytes) -> str:
    """git's hash of a file."""
    head = f"blob {len(content)}\0".encode()
    return hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                if hub.silent:
                    self.close_connection = True
                    return
                with self.found():
                    content = hub.files(found[1], found[2])[found[3]]
                    self.file(found[1], found[2], found[3], content)
            elif found := re.fullmatch(
                r"/api/models/([^/]+/[^/]+)/tree/([^/]+).*", path
            ):
                with self.found():
                    self.answer(_tree(hub.files(found[1], found[2])))
            elif found := re.fullmatch(
                r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path
            ):
                with self.found():
                    files = hub.files(found[1], found[2] or "main")
                    sha = hub.sha(found[1], found[2] or "main")
                    names = [{"rfilename": name} for name in files]
                    self.answer({"id": found[1], "sha": sha, "siblings": names})
            else:
                self.refuse("EntryNotFound")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.tokens.add(self.headers.get("Authorization"))
            if self.path == "/api/repos/create":
                told = json.loads(body)
                repo = f"{told['organization']}/{told['name']}"
                if repo not in hub.newest:
                    # "private" in older clients.
                    hub.private[repo] = (
                        told.get("private") or told.get("visibility") == "private"
                    )
                    hub.commit(repo, {".gitattributes": b"* text\n"})
                self.answer({"url": f"{hub.address}/{repo}"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
                with self.found():
                    there = hub.files(found[1])
                    names = [x["path"] for x in json.loads(body)["files"]]
                    self.answer({"files": [_regular(n, there) for n in names]})
            elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
                with self.found():
                    sha = hub.apply(found[1], list(map(json.loads, body.splitlines())))
                    url = f"{hub.address}/{found[1]}/commit/{sha}"
                    self.answer({"commitUrl": url, "commitOid": sha})
            else:
                self.refuse("EntryNotFound")

        @contextlib.contextmanager
        def found(self) -> Iterator[None]:
            """Says so if there is no such repository, revision or file."""
            try:
                yield
            except KeyError:
                self.refuse("RepoNotFound")

        def refuse(self, code: str) -> None:
            self.answer({"error": code}, 404, {"X-Error-Code": code})

        def file(self, repo: str, revision: str, path: str, content: bytes) -> None:
            served = hub.damaged.get((repo, path), content)
            sha = hub.sha(repo, revision)
            head = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": sha}
            self.send(served, 200, "application/octet-stream", head)

        def answer(self, told: Any, code: int = 200, head: Any = None) -> None:
            self.send(json.dumps(told).encode(), code, "application/json", head or {})

        def send(self, content: bytes, code: int, kind: str, head: Any) -> None:
            self.send_response(code)
            for name, value in head.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": k, "size": len(v), "oid": _oid(v)}
        for k, v in files.items()
    ]


def _regular(name: str, there: dict[str, bytes]) -> dict[str, Any]:
    """That a file is to be sent whole, and what is there under its name."""
    oid = _oid(there[name]) if name in there else None
    return {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": oid}
