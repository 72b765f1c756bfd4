"""Hidden states by running vLLM servers. Written against vLLM 0.33, by its documentation; not measured here.

Used of the protocol: `GET /version`, `GET /v1/models`, and `POST /v1/embeddings` with `messages`. A server that runs a
generative model as a pooling model answers these with the last token's state.
"""

import base64
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ra_hmd.core.artifacts import fingerprint_model, sha256_file
from ra_hmd.core.config import first_problem
from ra_hmd.core.errors import UserError
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.generation.endpoint import api_key
from ra_hmd.models.pooling.fleet import Fleet, Server
from ra_hmd.models.pooling.prompts import Prompt
from ra_hmd.models.pooling.settings import BackendSettings
from ra_hmd.models.pooling.states import StateCheck, check_tokens

KEY_VARIABLE = "VLLM_API_KEY"
"""Environment variable of the API key, as vLLM itself calls it."""
_AGREE = 0.05
"""Most that servers may differ in the state of one prompt, relative to its length."""
_OVERHEAD = 1 << 20  # bytes of an answer beside its values; a list of many adapters is as long
_VALUE = 32  # bytes of a value written as a decimal number
_WEIGHTS = "adapter_model.safetensors"
_log = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class _Version(BaseModel):
    version: str


class _Card(BaseModel):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Card]


class _Embedding(BaseModel):
    embedding: str | list[float]


class _Usage(BaseModel):
    prompt_tokens: int | None = None


class _Embeddings(BaseModel):
    data: list[_Embedding] = Field(min_length=1, max_length=1)
    usage: _Usage = Field(default_factory=_Usage)


class ServerStates:
    """Hidden states by vLLM servers: a `StateSource`.

    Each server is greeted before it gets memes, and again after a failure: its version, the models it serves, and its
    answer to a drawn picture must be right.

    Args:
        run: The run whose model the servers have.
        settings: URLs, name of the model, limits.
        check: What is checked of each state.
        probe: Prompt about a drawn picture.

    Raises:
        UserError: no server answers, or one has another version, model or adapter, or answers with other states.
    """

    def __init__(self, run: Run, settings: BackendSettings, check: StateCheck, probe: Prompt) -> None:
        self.run, self.version = run, ""
        self._wanted, self._check, self._probe = settings.engine_model, check, probe
        self._expected: Tensor | None = None
        self._told = False
        self._fleet = Fleet(
            settings.urls,
            key=api_key(KEY_VARIABLE),
            timeout=settings.engine_timeout,
            concurrency=settings.engine_concurrency,
            most_bytes=_OVERHEAD + _VALUE * check.width,
            greet=self._greet,
        )
        self._fleet.greet_all()

    def states(self, prompts: Sequence[Prompt], *, tuned: bool = True) -> Tensor:
        """See `StateSource`. All prompts are under way at once, as far as the limit for each server lets them."""
        most = min(len(prompts), self._fleet.concurrency * len(self._fleet.servers))
        with ThreadPoolExecutor(most) as pool:
            try:
                return torch.stack(list(pool.map(lambda prompt: self._ask(prompt, tuned), prompts)))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # after an error the rest is not sent

    def _ask(self, prompt: Prompt, tuned: bool) -> Tensor:
        server, answer = self._fleet.ask("/v1/embeddings", lambda server: self._body(server, prompt, tuned))
        return self._read(server, answer, prompt)

    def _body(self, server: Server, prompt: Prompt, tuned: bool) -> dict[str, Any]:
        return {
            "model": server.notes["tuned" if tuned else "base"],
            "messages": prompt.messages(),
            "add_generation_prompt": True,
            "use_activation": False,
            "encoding_format": "base64",
            "embed_dtype": "float32",
            "endianness": "little",
        }

    def _read(self, server: Server, answer: Any, prompt: Prompt) -> Tensor:
        parsed = _parse(_Embeddings, answer, server)
        check_tokens(parsed.usage.prompt_tokens, prompt, server.url)
        values = parsed.data[0].embedding
        try:
            array = np.frombuffer(base64.b64decode(values, validate=True), "<f4") if isinstance(values, str) else values
        except ValueError as error:
            raise UserError(f"{server.url} answers with an embedding that is no base64 of float32 values.") from error
        return self._check(torch.tensor(np.array(array, dtype=np.float32)), server.url)

    def _greet(self, server: Server) -> None:
        version = _parse(_Version, self._fleet.send(server, "GET", "/version"), server).version
        if self.version and version != self.version:
            raise UserError(
                f"{server.url} has vLLM {version}, the other servers have {self.version}; a store has the features of "
                "one version."
            )
        cards = _parse(_Models, self._fleet.send(server, "GET", "/v1/models"), server).data
        server.notes |= self._choose(server, cards)
        answer = self._fleet.send(server, "POST", "/v1/embeddings", self._body(server, self._probe, True))
        state = self._read(server, answer, self._probe)
        if self._expected is None:
            self._expected, self.version = state, version
        elif float((state - self._expected).norm() / self._expected.norm()) > _AGREE:
            raise UserError(
                f"{server.url} answers a drawn picture with another state than the other servers; all must have the "
                "run's base model and adapter."
            )

    def _choose(self, server: Server, cards: Sequence[_Card]) -> dict[str, str]:
        """Names of the run's model, tuned and not, at a server. Raises `UserError` where they are not served."""
        run, listed = self.run, ", ".join(card.id for card in cards) or "nothing"
        bases = [card for card in cards if card.parent is None]
        fitting = [card for card in cards if (card.parent is not None) == (run.adapter is not None)]
        if self._wanted is not None:
            fitting = [card for card in fitting if card.id == self._wanted]
        kind = "model" if run.adapter is None else "adapter"
        if len(fitting) != 1:
            name = f"the {kind} {self._wanted}" if self._wanted else f"exactly one {kind}"
            how = "" if run.adapter is None else f" Start it with --enable-lora --lora-modules NAME={run.adapter}."
            raise UserError(f"{server.url} does not serve {name}; it serves {listed}.{how} --engine-model names one.")
        (card,) = fitting
        base = next((one for one in bases if one.id == card.parent), bases[0] if bases else card)
        self._compare(server, card, base)
        short = [one for one in (card, base) if one.max_model_len and one.max_model_len < run.settings.cutoff_len]
        if short:
            raise UserError(
                f"{server.url} takes prompts of at most {short[0].max_model_len} tokens, the run's have up to "
                f"{run.settings.cutoff_len} (`cutoff_len`); start it with --max-model-len {run.settings.cutoff_len}."
            )
        return {"tuned": card.id, "base": base.id}

    def _compare(self, server: Server, card: _Card, base: _Card) -> None:
        """Compare the served files with the run's, as far as they can be seen from here."""
        run, unseen = self.run, []
        if run.adapter is not None:
            weights = Path(card.root or "") / _WEIGHTS
            if not card.root or not weights.is_file():
                unseen.append(f"adapter {card.root or card.id}")
            elif sha256_file(weights) != sha256_file(run.adapter / _WEIGHTS):
                raise UserError(f"{server.url} serves as {card.id} the adapter {card.root}, not that of {run.folder}.")
        root = base.root or base.id
        if root != run.base_model:
            if not Path(root).is_dir() or not Path(run.base_model).is_dir():
                unseen.append(f"model {root}")
            elif fingerprint_model(root) != fingerprint_model(run.base_model):
                raise UserError(f"{server.url} serves the model {root}, which is not the run's {run.base_model}.")
        if unseen and not self._told:
            self._told = True
            served = " and the ".join(unseen)
            _log.warning("%s serves the %s: that these are the run's cannot be seen from here.", server.url, served)


def _parse(model: type[M], answer: Any, server: Server) -> M:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise UserError(
            f"{server.url} does not answer as vLLM does ({first_problem(error)}); give the URL of `vllm serve`."
        ) from error
