"""A server of the chat-completions protocol, as a judge answers."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import openai_server
from openai_server import Endpoint, Reply, completion, error, slowly

__all__ = ["Reply", "completion", "error", "explanation", "grade", "serve", "slowly"]


def explanation(body: dict[str, Any]) -> str:
    """The rationale in a question."""
    (found,) = re.findall(r"<explanation-(\w+)>\n(.*)\n</explanation-\1>", body["messages"][-1]["content"], re.DOTALL)
    return found[1]


def grade(score: Any, reason: str = "It names the cake.") -> str:
    return json.dumps({"score": score, "reason": reason})


def serve(reply: Callable[[dict[str, Any], int], Reply]) -> AbstractContextManager[Endpoint]:
    """Run such a server on loopback, which counts how often an explanation is asked about."""
    return openai_server.serve(reply, explanation)
