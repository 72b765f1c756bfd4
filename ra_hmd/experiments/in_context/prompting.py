"""In-context prompts: memes with their demonstrations, scored by the LMM."""

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

_CACHED_IMAGES = 64  # decoded images in memory, as the same neighbours recur


class InContextScorer:
    """Scores memes with the training question, after the same question and its answer for each demonstration.

    Args:
        chat_model: The LMM.
        settings: Input settings of the run.
        examples: Labelled memes.
        answers: Answer of each class.
    """

    def __init__(
        self, chat_model: ChatModel, settings: InputSettings, examples: Sequence[Meme], answers: Sequence[str]
    ) -> None:
        self.chat_model, self.settings, self.examples, self.answers = chat_model, settings, examples, answers
        self._questions: dict[int, str] = {}
        self._image = lru_cache(_CACHED_IMAGES)(_load)

    def chat(self, meme: Meme, shown: Sequence[int]) -> Chat:
        """Chat with the examples `shown` (row numbers) and their answers, then the question about `meme`."""
        messages, images = [], []
        for row in shown:
            example = self.examples[row]
            image = self._image(example.id, example.path)
            if row not in self._questions:
                self._questions[row] = self._question(example, image)
            assert isinstance(example.label, int)
            messages += [{"role": "user", "content": self._questions[row]},
                         {"role": "assistant", "content": self.answers[example.label]}]  # fmt: skip
            images.append(image)
        image = _load(meme.id, meme.path)
        messages.append({"role": "user", "content": self._question(meme, image)})
        return Chat(messages, [*images, image], self.chat_model.model.cluster_of(meme.caption, image))

    def _question(self, meme: Meme, image: Image) -> str:
        """Question about a meme, with the guidance of its cluster and its caption shortened as in training."""
        model = self.chat_model.model
        try:
            guidance = model.guidance_of(model.cluster_of(meme.caption, image))
            fitted = model.encoder.encode(meme.caption, image, guidance).caption
        except ValueError as error:  # a UserError, or of the model's own processing of the image
            raise UserError(f"meme {meme.id!r}: {error}") from error
        return self.settings.prompt.render(fitted, model.encoder.plain(guidance))

    def scores(self, memes: Sequence[Meme], shown: np.ndarray, batch_size: int) -> np.ndarray:
        """Probabilities float64 [Q, C] of the answers (binary: of the positive one), from one forward pass each.

        Args:
            memes: Q memes.
            shown: [Q, K], row numbers of the examples.
            batch_size: Chats per pass.
        """
        parts = [self._probabilities(memes[start : start + batch_size], shown[start : start + batch_size])
                 for start in range(0, len(memes), batch_size)]  # fmt: skip
        found = np.concatenate(parts)
        return (found[:, 1:] if self.settings.problem.kind == "binary" else found).astype(np.float64)

    def _probabilities(self, memes: Sequence[Meme], shown: np.ndarray) -> np.ndarray:
        """Answer probabilities of one batch, which limits the images in memory."""
        chats = [self.chat(meme, rows) for meme, rows in zip(memes, shown.tolist(), strict=True)]
        try:
            found = self.chat_model.answer_probs(chats, self.settings.expected_answers, len(chats))
        except UserError as error:
            raise UserError(f"Of the memes {memes[0].id!r} to {memes[-1].id!r}, {error}.") from error
        bad = [f"meme {meme.id!r}" for meme, row in zip(memes, found, strict=True) if not np.isfinite(row).all()]
        raise_all(bad, "The model's answer is not a number; try --dtype float32")
        return found

    def check_context(self, memes: Sequence[Meme], shown: np.ndarray) -> int:
        """Measure the longest prompt in tokens.

        Raises:
            UserError: a prompt exceeds the LMM's context; the message says about how many demonstrations would fit.
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
                f"model's context is {context}: about {fit} would fit. Take fewer --shots; images count by their "
                "pixels."
            )
        return longest


def _load(name: str, path: Path) -> Image:
    try:
        return load_image(path)
    except UserError as error:
        raise UserError(f"meme {name!r}: {error}") from error


def class_answers(settings: InputSettings, given: Sequence[str] = ()) -> tuple[str, ...]:
    """Answers of the demonstrations, one per class in class order.

    The given answers come first, then the official sentences where they begin with the run's words, then those words.

    Raises:
        UserError: given answers that do not begin with the run's words, or a run of label sets.
    """
    expected = settings.expected_answers
    if expected.several:
        raise UserError("In-context learning needs one class per meme: of label sets no first token tells the answer.")
    for answers, required in ((tuple(given), True), (OFFICIAL_ANSWERS, False)):
        found = [_class_of(answer, expected) for answer in answers]
        if answers and found == list(range(len(expected.words))):
            return answers
        if answers and required:
            raise UserError(
                f"--answer {', '.join(map(repr, answers))}: give one for each class, in class order, that begin with "
                f"{', '.join(map(repr, expected.words))}."
            )
    return expected.words


def _class_of(answer: str, expected: Answers) -> int | None:
    try:
        label = expected.label_of(answer)
    except ValueError:
        return None
    return label if isinstance(label, int) else None
