"""Words of a trained LMM: generation, and probabilities of given answers, for chats with any number of images.

Template, processor and pixel limits are those of training, so a chat that asks a meme's question has the same tokens as
`MemeEncoder.encode` gives it, and the same answer probabilities as the LMH.

Shapes: Q chats, B of a batch, C answers.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image

from ra_hmd.core.errors import UserError
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, Answers
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.classifier import base_model
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER
from ra_hmd.models.experts.attach import experts_of
from ra_hmd.models.meme_model import MemeModel, prompt_row
from ra_hmd.models.tokenization import MemeEncoder

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Chat:
    """A conversation for an LMM.

    Attributes:
        messages: `role` and `content` of each turn: perhaps a `system` message, then `user` and `assistant` in turn;
            the last one is the user's. Each `<image>` in a content is the place of the next image.
        images: The images, in the order of their places.
        cluster: Cluster of the meme that the chat is about, by which experts are routed; -1: unknown.

    Raises:
        UserError: turns in another order, or another number of images than of places.
    """

    messages: list[dict[str, str]]
    images: list[Image.Image] = field(default_factory=list)
    cluster: int = UNKNOWN_CLUSTER

    def __post_init__(self) -> None:
        roles = [message["role"] for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if not turns or turns != [("user", "assistant")[number % 2] for number in range(len(turns) | 1)]:
            raise UserError(
                f"A chat has the roles {', '.join(roles) or 'of nobody'}; needed is perhaps `system`, then `user` and "
                "`assistant` in turn, `user` last."
            )
        places = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in self.messages)
        if places != len(self.images):
            raise UserError(f"A chat has {places} times {IMAGE_PLACEHOLDER} and {len(self.images)} images.")


def chat_ids(encoder: MemeEncoder, chat: Chat) -> list[int]:
    """The prompt of a chat, as token ids: with an image token for each patch, and ending in the assistant header."""
    messages = [dict(message) for message in chat.messages]
    system = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
    plugin, tokenizer, processor = encoder.template.mm_plugin, encoder.tokenizer, encoder.processor
    expanded = plugin.process_messages(messages, chat.images, [], [], processor)
    prefix, _ = plugin.process_token_ids([], [], chat.images, [], [], tokenizer, processor)
    prompt, _ = encoder.template.encode_oneturn(tokenizer, [*expanded, {"role": "assistant", "content": ""}], system)
    return prefix + prompt


def fold_image_tokens(ids: list[int], image_token: int) -> list[int]:
    """Token ids with one image token for each image, as vLLM takes them, which puts in the others itself."""
    return [
        token for token, run in groupby(ids) for token in ([token] if token == image_token else [token] * len([*run]))
    ]


def check_run_adapter(run: Run, adapter: bool) -> None:
    """Raise `UserError` where an adapter shall be left aside and there is none."""
    if not adapter and run.adapter is None:
        raise UserError(f"{run.folder} has no adapter that could be left aside: it is the model itself.")


def check_length(tokens: int, max_new_tokens: int, context: int) -> None:
    """Raise `UserError` (a sentence without a subject) when a prompt and its answer do not fit the context."""
    if tokens + max_new_tokens > context:
        raise UserError(
            f"its prompt has {tokens} tokens and {max_new_tokens} are requested, but the model's context is {context}; "
            "shorten the texts, take fewer examples, or ask for fewer tokens"
        )


class ChatModel:
    """A loaded run that answers in words. Greedy, so the same at every call; a chat depends on no other one.

    Args:
        model: The run; its head, if it has one, plays no part.
        adapter: Whether the trained adapter is in force; without it the base model speaks. One thread at a time: this
            is a state of the model.

    Raises:
        UserError: no adapter that could be left aside.
    """

    def __init__(self, model: MemeModel, adapter: bool = True) -> None:
        if model.encoder.tokenizer.padding_side != "left":
            raise ValueError("generation needs a MemeModel that pads on the left")
        check_run_adapter(model.run, adapter)
        self.model, self.adapter = model, adapter
        self._base = base_model(model.model)
        # Models with M-RoPE count their positions by them; others do not take them.
        self._types = "mm_token_type_ids" in inspect.signature(self._base.forward).parameters

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self._base.config.get_text_config().max_position_embeddings

    def encode(self, chat: Chat, max_new_tokens: int = 1) -> list[int]:
        """Token ids of a chat.

        Raises:
            UserError: prompt and answer do not fit the context; nothing is cut.
            ValueError: what the model's own code says of an image.
        """
        ids = chat_ids(self.model.encoder, chat)
        check_length(len(ids), max_new_tokens, self.context)
        return ids

    def generate(self, chats: Sequence[Chat], max_new_tokens: int = 256, batch_size: int = 8) -> list[str]:
        """Answers of Q chats, in their order, without outer blanks.

        Args:
            chats: Chats to answer.
            max_new_tokens: Longest answer; it is cut there.
            batch_size: Chats per pass.

        Raises:
            UserError: a chat that the model cannot take; names its place.
        """
        from transformers import GenerationConfig

        tokenizer = self.model.encoder.tokenizer
        # What is not set here would come from the base model's folder; Qwen's have a repetition penalty.
        greedy = GenerationConfig(
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.model.encoder.template.get_stop_token_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = [""] * len(chats)
        for rows, batch in self._batches(chats, max_new_tokens, batch_size):
            # `generate` goes on from its own positions.
            given = {name: value for name, value in batch.items() if name not in ("position_ids", "rope_deltas")}
            if self._types:
                given["mm_token_type_ids"] = (batch["input_ids"] == self._base.config.image_token_id).int()
            with torch.inference_mode(), self._speaker([chats[row].cluster for row in rows]):
                ids = cast(Callable[..., torch.Tensor], self._base.generate)(**given, generation_config=greedy)
            new = ids[:, batch["input_ids"].shape[1] :]
            for row, text in zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                answers[row] = text.strip()
        return answers

    def answer_probs(self, chats: Sequence[Chat], answers: Answers, batch_size: int = 8) -> np.ndarray:
        """Probability of each answer relative to the others, by its first token, as the LMH reads it: float32 [Q, C].

        Args:
            chats: Chats to answer.
            answers: The answers, in class order.
            batch_size: Chats per pass.

        Raises:
            UserError: a chat that the model cannot take, answers that no one token tells apart.
        """
        first = self.model.encoder.answer_token_ids(answers)
        if not first:
            raise UserError("Answers that list any number of classes have no first token that tells them apart.")
        found = np.zeros((len(chats), len(first)), dtype=np.float32)
        for rows, batch in self._batches(chats, 1, batch_size):
            with torch.inference_mode(), self._speaker([chats[row].cluster for row in rows]):
                logits = self._base(**batch, use_cache=False, logits_to_keep=1).logits
            found[rows] = logits[:, -1, first].float().softmax(dim=-1).cpu().numpy()
        return found

    def answer_ids(self, chat: Chat, answer: str) -> list[int]:
        """Token ids of an answer as training has it after the prompt of `chat`, with the token that ends it."""
        tokenizer, template = self.model.encoder.tokenizer, self.model.encoder.template
        said = [*(dict(message) for message in chat.messages), {"role": "assistant", "content": answer}]
        system = said.pop(0)["content"] if said[0]["role"] == "system" else None
        _, ids = template.encode_oneturn(tokenizer, said, system)
        stops = template.get_stop_token_ids(tokenizer)
        end = next((place for place, token in enumerate(ids) if token in stops), None)
        return [*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1]

    def answer_log_probs(
        self, chats: Sequence[Chat], answers: Sequence[list[int]], batch_size: int = 8
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Log-probabilities of the next token at each place of given answers.

        Args:
            chats: Chats [Q].
            answers: Token ids of each chat's answer, one or more; see `answer_ids`.
            batch_size: Chats per pass.

        Yields:
            Rows in an order of their own, each with its log-probabilities float32 [T, V]: row t is the distribution
            of the answer's token t, after the prompt and the tokens before it.

        Raises:
            UserError: a chat that the model cannot take; names its place.
        """
        for rows, batch in self._batches(chats, 1, batch_size, answers):
            longest = max(len(answers[row]) for row in rows)
            with torch.inference_mode(), self._speaker([chats[row].cluster for row in rows]):
                logits = self._base(**batch, use_cache=False, logits_to_keep=longest + 1).logits
            for place, row in enumerate(rows):
                yield row, logits[place, -len(answers[row]) - 1 : -1].float().log_softmax(dim=-1)

    def _batches(
        self,
        chats: Sequence[Chat],
        max_new_tokens: int,
        batch_size: int,
        answers: Sequence[list[int]] | None = None,
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Rows of similar length with their inputs, on the model's device; `answers` follow the prompts."""
        encoded = []
        for row, chat in enumerate(chats):
            try:
                following = [] if answers is None else answers[row]
                encoded.append(self.encode(chat, max(max_new_tokens, len(following))) + following)
            except ValueError as error:  # a UserError, or what the model's own code says of an image
                raise UserError(f"chat {row + 1} of {len(chats)}: {error}") from error
        order = sorted(range(len(chats)), key=lambda row: len(encoded[row]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = self.model.collate([prompt_row(encoded[row], chats[row].images, UNKNOWN_CLUSTER) for row in rows])
            del batch["answer_positions"]
            batch.pop("cluster_ids", None)
            yield rows, {name: value.to(self.model.device) for name, value in batch.items()}

    @contextmanager
    def _speaker(self, clusters: list[int]) -> Iterator[None]:
        """The model that speaks for a batch of chats: routed by their clusters, or without adapter and experts."""
        experts = experts_of(self._base)
        with ExitStack() as stack:
            if not self.adapter:
                stack.enter_context(cast("PeftModel", self.model.model).disable_adapter())
            if experts is not None:
                ids = torch.tensor(clusters, device=self.model.device)
                stack.enter_context(experts.routing.using(ids) if self.adapter else experts.disabled())
            yield
