"""A real HTTP server that follows vLLM's documented protocol for pooling, with a real Qwen-VL and its LoRA behind it.

It shares no code with this package: messages become tokens by the model's own chat template and processor, as in vLLM,
and the state is read from transformers' model with PEFT's adapter. What stands in a test is what it shall do wrong.
"""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from servers import answered_by


class PoolingModel:
    """What `vllm serve MODEL --runner pooling --convert embed` computes, with one adapter."""

    def __init__(self, model: str, adapter: Path | None) -> None:
        from peft import PeftModel
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.root, self.adapter = model, adapter
        self.processor = AutoProcessor.from_pretrained(model)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        self.model = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter).eval()
        self.lock = threading.Lock()

    def __call__(
        self, messages: list[dict[str, Any]], *, tuned: bool, pooling: str, **options: Any
    ) -> tuple[torch.Tensor, int]:
        """The pooled state and the number of tokens."""
        pictures: list[Image.Image] = []

        def part_of(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] != "image_url":
                return part
            kind, _, data = part["image_url"]["url"].partition(",")
            assert kind == "data:image/png;base64"
            pictures.append(Image.open(BytesIO(base64.b64decode(data))).convert("RGB"))
            return {"type": "image"}

        turns = [{"role": one["role"], "content": one["content"] if isinstance(one["content"], str)
                  else [part_of(part) for part in one["content"]]} for one in messages]  # fmt: skip
        prompt = options.pop("add_generation_prompt")
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        with self.lock, torch.inference_mode():
            inputs = self.processor(text=[text], images=pictures, return_tensors="pt", **options)
            inner = self.model if self.adapter is None else self.model.get_base_model()
            if self.adapter is not None and not tuned:
                with self.model.disable_adapter():
                    states = inner.model(**inputs, use_cache=False).last_hidden_state[0]
            else:
                states = inner.model(**inputs, use_cache=False).last_hidden_state[0]
        return states[-1] if pooling == "LAST" else states.mean(dim=0), len(states)


@dataclass
class VllmServer:
    """The server, as a test sees it.

    Attributes:
        model: What computes.
        names: Name of the base model and of the adapter, as `--served-model-name` and `--lora-modules` give them.
        version: What it says of its version.
        key: `--api-key`.
        pooling: `pooling_type` of `--pooler-config`.
        obeys: Whether a request's `use_activation` counts.
        limits: `--mm-processor-kwargs`.
        max_model_len: `--max-model-len`.
        misbehave: Called with the number of the request for a state, from 0; a result takes the place of the answer: a
            status, or "hang", "die", "redirect", "flood".
        url: Where it listens.
        bodies: The requests for a state.
        seen: Paths and Authorization headers of all requests.
    """

    model: PoolingModel
    names: tuple[str, str] = ("base", "run")
    version: str = "0.33.0"
    key: str = ""
    pooling: str = "LAST"
    obeys: bool = True
    limits: dict[str, int] = field(default_factory=dict)
    max_model_len: int = 4096
    misbehave: Callable[[int], int | str | None] = lambda number: None
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, str]] = field(default_factory=list)
    most: int = 0
    now: int = 0

    def cards(self) -> dict[str, Any]:
        """The body of `GET /v1/models`."""
        base, run = self.names
        listed = [(base, self.model.root, None)]
        if self.model.adapter is not None:
            listed.append((run, str(self.model.adapter), base))
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": root, "parent": parent,
                 "max_model_len": None if parent else self.max_model_len, "permission": []}
                for name, root, parent in listed
            ],
        }  # fmt: skip

    def embed(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of `POST /v1/embeddings`."""
        if "normalize" in body:
            return 400, error("Parameter `normalize` was removed; use `use_activation` instead.", 400)
        if body["model"] not in self.names[: 1 + (self.model.adapter is not None)]:
            return 404, error(f"The model `{body['model']}` does not exist.", 404)
        prompt = body.get("add_generation_prompt", False)
        state, tokens = self.model(
            body["messages"],
            tuned=body["model"] == self.names[1],
            pooling=self.pooling,
            add_generation_prompt=prompt,
            **self.limits,
        )
        if not self.obeys or body.get("use_activation") is not False:
            state = torch.nn.functional.normalize(state, dim=-1)
        values = state.numpy().astype("<f4" if body.get("endianness") == "little" else np.float32)
        as_text = base64.b64encode(values.tobytes()).decode()
        embedding = as_text if body.get("encoding_format") == "base64" else values.tolist()
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        data = [{"index": 0, "object": "embedding", "embedding": embedding}]
        return 200, {
            "id": "embd-0",
            "object": "list",
            "created": 0,
            "model": body["model"],
            "data": data,
            "usage": usage,
        }


def error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}


@contextmanager
def vllm_server(model: PoolingModel, **settings: Any) -> Iterator[VllmServer]:
    """Run such a server on loopback."""
    served = VllmServer(model, **settings)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def say(self, status: int, body: Any, **headers: str) -> None:
            text = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(text)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def allowed(self) -> bool:
            given = self.headers.get("Authorization", "")
            with lock:
                served.seen.append((self.path, given))
            if served.key and self.path.startswith("/v1") and given != f"Bearer {served.key}":
                self.say(401, {"error": "Unauthorized"})
                return False
            return True

        def do_GET(self) -> None:
            if not self.allowed():
                return
            answers = {"/version": {"version": served.version}, "/v1/models": served.cards()}
            known = self.path in answers
            self.say(200 if known else 404, answers[self.path] if known else {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            with lock:
                number = len(served.bodies)
                served.bodies.append(body)
                served.now += 1
                served.most = max(served.most, served.now)
            try:
                self.answer(body, served.misbehave(number))
            finally:
                with lock:
                    served.now -= 1

        def answer(self, body: dict[str, Any], wrong: int | str | None) -> None:
            if wrong is None:
                status, said = served.embed(body) if self.path == "/v1/embeddings" else (404, {"detail": "Not Found"})
                self.say(status, said)
            elif wrong == "die":
                self.server.socket.close()
                self.close_connection = True
                self.connection.close()
            elif wrong == "hang":
                time.sleep(2)
                self.close_connection = True
            elif wrong == "redirect":
                self.say(307, b"", Location="http://elsewhere.invalid/v1/embeddings")
            elif wrong == "flood":
                self.say(200, b" " * (2 << 20))
            else:
                self.say(int(wrong), error("EngineCore encountered an issue.", int(wrong)))

        def log_message(self, *_: Any) -> None:
            pass

    with answered_by(Handler) as address:
        served.url = address
        yield served
