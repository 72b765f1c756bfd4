"""A real HTTP server that speaks the chat-completions protocol and misbehaves as it is told to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from servers import answered_by

Reply = tuple[int, Any]
"""Status, and a body: text as it is, anything else as JSON."""


@dataclass
class Endpoint:
    """The server, as a test sees it.

    Attributes:
        url: Its base URL.
        requests: Bodies of what was asked, in order.
        keys: The Authorization header of each.
        reply: From a body and how often the same was asked before to what is answered.
        most: Most requests that were under way at once.
    """

    reply: Callable[[dict[str, Any], int], Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def messages_of(body: dict[str, Any]) -> Any:
    return body["messages"]


def completion(content: str | None, *, finish: str = "stop", usage: bool = True, **message: Any) -> Reply:
    """A chat completion of 100 tokens in and 20 out."""
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "served",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return 200, body


def error(status: int, message: str) -> Reply:
    return status, {"error": {"message": message, "type": "error", "code": None}}


@contextmanager
def serve(
    reply: Callable[[dict[str, Any], int], Reply], about: Callable[[dict[str, Any]], Any] = messages_of
) -> Iterator[Endpoint]:
    """Run such a server on loopback; `about` says which bodies ask the same."""
    endpoint = Endpoint(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                before = sum(about(one) == about(body) for one in endpoint.requests)
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers["Authorization"])
                endpoint.now += 1
                endpoint.most = max(endpoint.most, endpoint.now)
            status, answer = endpoint.reply(body, before)
            if self.path != "/v1/chat/completions":
                status, answer = error(404, f"no {self.path} here")
            with endpoint.lock:
                endpoint.now -= 1
            text = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    with answered_by(Handler) as address:
        endpoint.url = f"{address}/v1"
        yield endpoint


def slowly(seconds: float, reply: Reply) -> Reply:
    time.sleep(seconds)
    return reply
