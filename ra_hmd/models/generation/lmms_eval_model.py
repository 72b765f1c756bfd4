"""A run as a model of lmms-eval (`--model ra_hmd`); only lmms-eval imports this. Written for lmms-eval 0.7.3.

The run answers questions of a benchmark as `ra-hmd explain` lets it speak: with its adapter, quantisation, template and
pixel limits, greedily. Pictures of a benchmark are of no cluster: experts are routed as for an unknown one.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from pydantic import Field, PositiveInt, model_validator

from ra_hmd.core.choices import DType
from ra_hmd.core.config import Settings, load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.progress import track
from ra_hmd.data.images import load_image
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, without_markup
from ra_hmd.models.checkpoint import Run, open_backbone, open_run
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel
from ra_hmd.models.tokenization import MemeEncoder

_BATCHES = 16  # of chats that are held with their pictures at a time
_PARAGRAPH = "\n\n"  # lmms-eval's stop string for tasks that state none; its own chat models leave it aside


class RunModelArguments(Settings):
    """What `--model_args` may say."""

    TITLE: ClassVar[str] = "--model_args"

    checkpoint: Path | None = Field(default=None, description="Stage 1 run, one of its checkpoints or its export.")
    adapter: bool = Field(default=True, description="false: the run's base model speaks, loaded in the same way.")
    base_model: str | None = Field(default=None, description="Where the base model of `checkpoint` lies now.")
    model: str | None = Field(default=None, description="In place of `checkpoint`: a model folder or hub name.")
    config: Path | None = Field(default=None, description="Stage 1 YAML that says how `model` is loaded.")
    template: str | None = Field(default=None, description="Template of LLaMA-Factory of `model`.")
    dtype: DType = Field(default="auto", description="Precision of the weights.")
    max_new_tokens: PositiveInt = Field(default=1024, description="Longest answer of a task that states none.")

    @model_validator(mode="after")
    def _check(self) -> "RunModelArguments":
        if (self.checkpoint is None) == (self.model is None):
            raise ValueError("give either `checkpoint=RUN` or `model=NAME`")
        if self.model is None and (self.config or self.template):
            raise ValueError("`config` and `template` are of `model`; a run states its own")
        if self.model is not None and (self.base_model or not self.adapter):
            raise ValueError(
                "`base_model` and `adapter=false` are of `checkpoint`; `model` is loaded without an adapter"
            )
        return self

    def open(self) -> Run:
        """The run or model that is meant."""
        if self.checkpoint is not None:
            return open_run(self.checkpoint, self.base_model)
        assert self.model is not None
        return open_backbone(self.model, self.template, config=self.config)


class RunModel(lmms):
    """A Stage 1 run, its base model, or a bare LMM, for tasks of `generate_until`.

    Args:
        batch_size: Questions per pass.
        device: Device of a single process; several have one each, by accelerate.
        arguments: See `RunModelArguments`.

    Raises:
        UserError: arguments that do not fit, a run that cannot be opened.
    """

    is_simple = False

    def __init__(self, batch_size: int | str | None = 1, device: str | None = None, **arguments: Any) -> None:
        super().__init__()
        arguments.pop("max_batch_size", None)
        texts = {name: str(value) for name, value in arguments.items() if name in ("model", "base_model", "template")}
        settings = load_settings(RunModelArguments, arguments | texts, "--model_args")
        if not str(batch_size).isdecimal() or int(batch_size or 0) < 1:
            raise UserError(f"--batch_size is {batch_size!r}; give the number of questions per pass.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        single = self._world_size == 1 and device is not None
        self.device = torch.device(device) if single and device is not None else self.accelerator.device
        self.max_new_tokens, self.batch_size = settings.max_new_tokens, int(batch_size or 1)
        self.speaker = ChatModel(MemeModel(settings.open(), self.device, settings.dtype), settings.adapter)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests.

        Raises:
            UserError: a task that samples or has films or sound, or a question that the model cannot take.
        """
        answers = [""] * len(requests)
        limits = [self._limits(request) for request in requests]
        order = sorted(range(len(requests)), key=lambda row: limits[row])
        batches = ((len(rows), rows) for rows in self._batches(order, limits))
        for rows in track(batches, "Questions", len(requests), "questions", show=self.rank == 0):
            max_new_tokens, until = limits[rows[0]]
            chats = [self._chat(requests[row]) for row in rows]
            found = self.speaker.generate(chats, max_new_tokens, self.batch_size)
            for row, text in zip(rows, found, strict=True):
                answers[row] = _stopped(text, until)
                self.cache_hook.add_partial("generate_until", (requests[row].args[0], requests[row].args[2]), text)
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: the tasks that retention is measured on ask for words."""
        raise UserError(f"{_name(requests)} asks for likelihoods, and `ra_hmd` answers in words; choose another task.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused, as `loglikelihood`."""
        raise UserError(f"{_name(requests)} asks in several rounds, and `ra_hmd` in one; choose another task.")

    def _batches(self, order: list[int], limits: list[tuple[int, tuple[str, ...]]]) -> Iterator[list[int]]:
        """Rows with one length of answer and one set of stop strings."""
        size = self.batch_size * _BATCHES
        for _, group in groupby(order, key=lambda row: limits[row]):
            rows = list(group)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _limits(self, request: Instance) -> tuple[int, tuple[str, ...]]:
        """Longest answer, and the strings at which it ends."""
        given: Mapping[str, Any] = request.args[2]
        if given.get("do_sample") or (given.get("temperature") or 0) > 0 or (given.get("num_beams") or 1) > 1:
            raise UserError(
                f"task {request.task_name} samples or searches ({dict(given)}), and `ra_hmd` is greedy, so that base "
                "and tuned model differ by the training alone; give --gen_kwargs temperature=0,do_sample=False."
            )
        until = given.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        return int(given.get("max_new_tokens") or self.max_new_tokens), tuple(
            stop for stop in stops if stop and stop != _PARAGRAPH
        )

    def _chat(self, request: Instance) -> Chat:
        _, to_messages, _, row, task, split = request.args
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][row]))
        try:
            return as_chat(messages, self.speaker.model.encoder)
        except ValueError as error:
            raise UserError(f"task {task}, question {row}: {error}") from error


def as_chat(messages: ChatMessages, encoder: MemeEncoder) -> Chat:
    """A conversation of lmms-eval as ours: each picture in its place, each text without control tokens.

    Raises:
        UserError: films or sound, a picture that cannot be decoded, turns that are no conversation.
    """
    turns, pictures = [], []
    for message in messages.messages:
        content = ""
        for part in message.content:
            if part.type == "text":
                content += encoder.plain(without_markup(part.text))
            elif part.type == "image":
                content += IMAGE_PLACEHOLDER
                pictures.append(load_image(part.url))
            else:
                raise UserError(f"it has a part of type {part.type}, and the model reads texts and pictures")
        turns.append({"role": message.role, "content": content})
    return Chat(turns, pictures)


def _stopped(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings in it."""
    ends = [text.find(stop) for stop in until if stop in text]
    return text[: min(ends)].strip() if ends else text


def _name(requests: Sequence[Instance]) -> str:
    return f"task {requests[0].task_name}" if requests else "a task"
