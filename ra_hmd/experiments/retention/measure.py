"""Answers of base and tuned model to the drawn questions, and the divergence of their next-token distributions.

Shapes: Q questions, T tokens of an answer, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ra_hmd.experiments.retention.answers import is_bare, is_verdict, share_of_words
from ra_hmd.experiments.retention.config import RetentionSettings
from ra_hmd.experiments.retention.pictures import Item
from ra_hmd.models.generation.chat import Chat, ChatModel
from ra_hmd.models.meme_model import MemeModel

Sides = tuple[str, str]
SIDES: Sides = ("base", "tuned")
"""The same loaded model with its adapter switched off, and in force."""


class PairedModel:
    """A run that answers twice: with the adapter switched off, and with it.

    Args:
        model: The loaded run; its head plays no part.
        settings: Length limit and batch size.

    Raises:
        UserError: a run without an adapter.
    """

    def __init__(self, model: MemeModel, settings: RetentionSettings) -> None:
        self.model, self.settings = model, settings
        self.chats = {"base": ChatModel(model, adapter=False), "tuned": ChatModel(model)}
        self.verdicts = model.run.settings.expected_answers

    def measure(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Measure questions [Q]; one row for each.

        Returns:
            What `Item.stated` says, the `answer` of both sides with `verdict`, `bare` and `words`; `divergence` for a
            general question, `log_likelihood` of both sides for a caption.

        Raises:
            UserError: a question that the model cannot take.
        """
        chats = [self._chat(item) for item in items]
        said = {
            side: speaker.generate(chats, self.settings.max_new_tokens, self.settings.batch_size)
            for side, speaker in self.chats.items()
        }
        rows = [
            item.stated()
            | {side: self._answer(item, said[side][place]) for side in SIDES}
            | {"same": said["base"][place] == said["tuned"][place]}
            for place, item in enumerate(items)
        ]
        # A general question is compared along the base model's own answer, a caption along its description.
        texts = [said["base"][place] if item.description is None else item.description
                 for place, item in enumerate(items)]  # fmt: skip
        for place, (base, tuned, ids) in self._distributions(chats, texts).items():
            if items[place].description is None:
                rows[place]["divergence"] = divergence(base, tuned)
            else:
                for side, log_probs in zip(SIDES, (base, tuned), strict=True):
                    rows[place][side]["log_likelihood"] = log_likelihood(log_probs, ids)
        return rows

    def _chat(self, item: Item) -> Chat:
        cluster = self.model.cluster_of(item.text, item.image)
        return Chat([{"role": "user", "content": item.question}], [item.image], cluster)

    def _answer(self, item: Item, answer: str) -> dict[str, Any]:
        words = share_of_words(answer, item.expected)
        verdict = is_verdict(answer, self.verdicts)
        return {"answer": answer, "verdict": verdict, "bare": is_bare(answer), "words": words}

    def _distributions(
        self, chats: Sequence[Chat], texts: Sequence[str]
    ) -> dict[int, tuple[Tensor, Tensor, list[int]]]:
        """Log-probabilities [T, V] of both sides at each token of the texts, and the tokens."""
        base, tuned = (self.chats[side] for side in SIDES)
        ids = [base.answer_ids(chat, text) for chat, text in zip(chats, texts, strict=True)]
        size = self.settings.batch_size
        pairs = zip(base.answer_log_probs(chats, ids, size), tuned.answer_log_probs(chats, ids, size), strict=True)
        return {row: (one, other, ids[row]) for (row, one), (_, other) in pairs}


def divergence(base: Tensor, tuned: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the tuned from the base model, in nats: KL(base ‖ tuned) over T tokens.

    Args:
        base: Log-probabilities [T, V].
        tuned: Log-probabilities [T, V].
    """
    return max(float((base.exp() * (base - tuned)).sum(dim=-1).mean()), 0.0)  # rounding can leave -1e-9


def log_likelihood(log_probs: Tensor, ids: Sequence[int]) -> float:
    """Mean log-probability of the tokens of a text [T], in nats per token."""
    tokens = torch.tensor(ids, device=log_probs.device)
    return float(log_probs.gather(1, tokens[:, None]).mean())
