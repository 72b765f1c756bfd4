"""A Hugging Face hub on this machine, of one repository: what its client needs to make, upload and download it."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class Hub:
    """Requests of the clients, the files of the repository, and whether it is private."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.private: bool | None = None
        self.address = ""


@contextmanager
def hub() -> Iterator[Hub]:
    """Run a hub; its address is for HF_ENDPOINT."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def tell(self, listed: list[Any] | None = None, **values: Any) -> None:
            self.reply(json.dumps(values if listed is None else listed).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            state.requests.append(f"POST {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                state.private = json.loads(body)["visibility"] == "private"
                self.tell(url=f"{state.address}/ana/memes")
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                self.tell(
                    files=[{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
                )
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        state.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                self.tell(success=True, commitOid=COMMIT, commitUrl=f"{state.address}/ana/memes/commit/{COMMIT}")
            else:
                self.tell()

        def do_GET(self) -> None:
            state.requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/ana/memes/tree/"):
                oids = {name: hashlib.sha1(content).hexdigest() for name, content in state.files.items()}
                sizes = {name: len(content) for name, content in state.files.items()}
                self.tell([{"type": "file", "path": name, "size": sizes[name], "oid": oids[name]} for name in oids])
            elif path.startswith("/api/models/ana/memes"):
                revision = path.rpartition("/revision/")[2]
                if revision not in (path, "main", COMMIT):
                    self.reply(b"", 404, X_Error_Code="RevisionNotFound")
                    return
                siblings = [{"rfilename": name} for name in state.files]
                self.tell(id="ana/memes", modelId="ana/memes", sha=COMMIT, siblings=siblings, private=True, tags=[])
            elif path.startswith("/ana/memes/resolve/") and (name := path.split("/", 5)[5]) in state.files:
                tag = hashlib.sha256(state.files[name]).hexdigest()
                self.reply(state.files[name], ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
            else:
                self.reply(b"", 404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
