"""Memes with their demonstrations, as chats with the LMM."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL.Image import Image

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import OFFICIAL_ANSWERS, Answers
from ra_hmd.models.generation.chat import Chat, ChatModel, chat_ids
from ra_hmd.models.tokenization import InputSettings

_PICTURES = 64  # decoded ones that are kept: neighbours come again and again


class Asker:
    """Asks the question of training about a meme, after the same question and the answer about others.

    Args:
        chat_model: The LMM.
        settings: Of the run.
        examples: Labelled memes.
        answers: What is said of each class.
    """

    def __init__(
        self, chat_model: ChatModel, settings: InputSettings, examples: Sequence[Meme], answers: Sequence[str]
    ) -> None:
        self.chat_model, self.settings, self.examples, self.answers = chat_model, settings, examples, answers
        self._questions: dict[int, str] = {}
        self._picture = lru_cache(_PICTURES)(_load)

    def chat(self, meme: Meme, shown: Sequence[int]) -> Chat:
        """The examples `shown` (rows) with their answers, then the question about `meme`."""
        messages, pictures = [], []
        for row in shown:
            example = self.examples[row]
            picture = self._picture(example.id, example.path)
            if row not in self._questions:
                self._questions[row] = self._question(example, picture)
            assert isinstance(example.label, int)
            messages += [{"role": "user", "content": self._questions[row]},
                         {"role": "assistant", "content": self.answers[example.label]}]  # fmt: skip
            pictures.append(picture)
        picture = _load(meme.id, meme.path)
        messages.append({"role": "user", "content": self._question(meme, picture)})
        return Chat(messages, [*pictures, picture])

    def _question(self, meme: Meme, picture: Image) -> str:
        """As in training: a caption that is too long for it is shortened here, too."""
        try:
            fitted = self.chat_model.model.encoder.encode(meme.caption, picture).caption
        except ValueError as error:  # a UserError, or what the model's own code says of the image
            raise UserError(f"meme {meme.id!r}: {error}") from error
        return self.settings.prompt.render(fitted)

    def scores(self, memes: Sequence[Meme], shown: np.ndarray, batch_size: int) -> np.ndarray:
        """float64 [Q, C]: p(answer) among the answers, of `binary` of the positive one, from one forward pass each.

        Args:
            memes: Q memes.
            shown: [Q, K], rows of the examples.
            batch_size: Chats per pass.
        """
        parts = [self._probabilities(memes[start : start + batch_size], shown[start : start + batch_size])
                 for start in range(0, len(memes), batch_size)]  # fmt: skip
        found = np.concatenate(parts)
        return (found[:, 1:] if self.settings.problem.kind == "binary" else found).astype(np.float64)

    def _probabilities(self, memes: Sequence[Meme], shown: np.ndarray) -> np.ndarray:
        """Of one batch, so that no more pictures than its own are in memory."""
        chats = [self.chat(meme, rows) for meme, rows in zip(memes, shown.tolist(), strict=True)]
        try:
            found = self.chat_model.answer_probs(chats, self.settings.expected_answers, len(chats))
        except UserError as error:
            raise UserError(f"Of the memes {memes[0].id!r} to {memes[-1].id!r}, {error}.") from error
        bad = [f"meme {meme.id!r}" for meme, row in zip(memes, found, strict=True) if not np.isfinite(row).all()]
        raise_all(bad, "The model's answer is not a number; try --dtype float32")
        return found

    def check_context(self, memes: Sequence[Meme], shown: np.ndarray) -> int:
        """Tokens of the longest prompt.

        Raises:
            UserError: it does not fit the LMM's context, with how many demonstrations would.
        """
        encoder, context, longest = self.chat_model.model.encoder, self.chat_model.context, 0
        for meme, rows in zip(memes, shown.tolist(), strict=True):
            tokens = len(chat_ids(encoder, self.chat(meme, rows)))
            longest = max(longest, tokens)
            if tokens < context:
                continue
            alone = len(chat_ids(encoder, self.chat(meme, [])))
            fit = max(0, (context - 1 - alone) * len(rows) // max(1, tokens - alone))
            raise UserError(
                f"meme {meme.id!r} with its {len(rows)} demonstrations has {tokens} tokens ({alone} without), and the "
                f"model's context is {context}: about {fit} would fit. Take fewer --shots; pictures count by their "
                "pixels."
            )
        return longest


def _load(name: str, path: Path) -> Image:
    try:
        return load_image(path)
    except UserError as error:
        raise UserError(f"meme {name!r}: {error}") from error


def class_answers(settings: InputSettings, given: Sequence[str] = ()) -> tuple[str, ...]:
    """What demonstrations say of each class, in class order: what was given, else the official sentences where the run
    has their words, else the run's words.

    Raises:
        UserError: answers that do not begin as those of the run, or a run of label sets: its answers are lists.
    """
    expected = settings.expected_answers
    if expected.several:
        raise UserError("In-context learning needs one class per meme: of label sets no first token tells the answer.")
    for answers, asked in ((tuple(given), True), (OFFICIAL_ANSWERS, False)):
        found = [_class_of(answer, expected) for answer in answers]
        if answers and found == list(range(len(expected.words))):
            return answers
        if answers and asked:
            raise UserError(
                f"--answer {', '.join(map(repr, answers))}: give one for each class, in class order, that begin with "
                f"{', '.join(map(repr, expected.words))}."
            )
    return expected.words


def _class_of(answer: str, expected: Answers) -> int | None:
    try:
        return expected.label_of(answer)
    except ValueError:
        return None
