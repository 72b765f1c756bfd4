"""From a meme to tokens: one encoder for training, extraction and inference.

LLaMA-Factory's template and multimodal plugin do the tokenising, so that training and inference have the same tokens.
Its own `infer_seqlen` would cut an over-long prompt at its end, where the head reads; here the caption is shortened
instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from PIL import Image
from pydantic import Field

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem, ProblemType
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, OFFICIAL_PROMPT, Answers, PromptTemplate, fit_caption
from ra_hmd.data.text import PlainText
from ra_hmd.models.families import Family, family_of

if TYPE_CHECKING:
    from llamafactory.data.template import Template
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Fewest tokens of `cutoff_len` that are kept free for the answer. The same for every meme of a task, because a caption
# that was shortened by the length of its own answer would give the label away.
ANSWER_BUDGET = 16

# What LLaMA-Factory puts in the place of an image, or a film or sound, until it knows how many tokens that takes.
_PLACEHOLDERS = ("{{image}}", "{{video}}", "{{audio}}")


class InputSettings(Settings):
    """Settings that determine the tokens of a meme and the hidden state that is read; saved in the run's manifest."""

    TITLE: ClassVar[str] = "input"

    template: str = Field(description="Template of LLaMA-Factory.")
    cutoff_len: int = Field(default=1024, description="Most tokens of a prompt with its answer.")
    image_max_pixels: int = Field(default=768 * 768, description="Larger images are scaled down to it.")
    image_min_pixels: int = Field(default=32 * 32, description="Smaller images are scaled up to it.")
    default_system: str | None = Field(default=None, description="System message; null: the template's own.")
    prompt_template: str = Field(
        default=OFFICIAL_PROMPT, description="Question, with <image> once and {text} for the caption."
    )
    positive_answer: str = Field(default="Yes", description="First word of the answer of class 1 (binary).")
    negative_answer: str = Field(default="No", description="First word of the answer of class 0 (binary).")
    embed_mode: Literal["last_token", "pool"] = Field(
        default="last_token", description="The head reads the last prompt token, or the mean over the prompt."
    )
    embed_layer: Literal["last", "penultimate"] = Field(default="last", description="Layer that the head reads.")
    problem_type: ProblemType = Field(default="binary", description="Meaning of a label.")
    answers: tuple[str, ...] = Field(default=(), description="Answers of C classes, in class order.")
    clusters: str | None = Field(default=None, description="Digest of the clusters that memes are assigned to.")
    guidance: str | None = Field(default=None, description="Digest of the guidance that each cluster's prompts have.")
    fold_captions: bool = Field(default=False, description="Fold captions before they become tokens (Unicode folding).")

    @property
    def prompt(self) -> PromptTemplate:
        """The question."""
        return PromptTemplate(self.prompt_template)

    @property
    def problem(self) -> Problem:
        """Classification problem of the head."""
        return Problem(self.problem_type, len(self.answers) or 1)

    @property
    def expected_answers(self) -> Answers:
        """Beginning of each class's answer, or the names that answers list, in class order."""
        return expected_answers(self.problem_type, self.answers, self.negative_answer, self.positive_answer)

    def to_dict(self) -> dict[str, Any]:
        """Return the values for the manifest and for fingerprints; `fold_captions` where it is on."""
        return self.model_dump(exclude=None if self.fold_captions else {"fold_captions"})


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, the caption in it, and whether that had to be shortened."""

    ids: list[int]
    shortened: bool
    caption: str


def expected_answers(kind: ProblemType, answers: Sequence[str], negative: str, positive: str) -> Answers:
    """The answers of a problem: `answers` in class order, of a binary one `negative` and `positive`."""
    return Answers((negative, positive)) if kind == "binary" else Answers(tuple(answers), kind == "multi_label")


def check_family(model: "str | PreTrainedConfig", template: str) -> None:
    """Raise `UserError` when `template` is not the one of the model family."""
    family = family_of(model)
    if family is not None and template not in family.templates:
        raise UserError(
            f"`template: {template}` does not fit a {family.name} model; use `template: {family.templates[0]}`. "
            "Another template moves the token that the head reads."
        )


class MemeEncoder:
    """Turns a caption and an image into prompt tokens within the budget.

    Args:
        template: LLaMA-Factory's template, fixed to the tokenizer.
        tokenizer: The model's tokenizer.
        processor: The model's processor, with the pixel limits set on it.
        prompt: The question.
        cutoff_len: Longest sequence, answer included.
        answers: The answers; room is kept for the longest one.
        family: Family of the model, which predicts how many tokens an image takes; None where it is not registered.
        fold_captions: Fold captions first (`fold_caption`).

    Attributes:
        plain: Makes a text in which neither tokenizer nor template reads anything but text.
    """

    def __init__(
        self,
        template: "Template",
        tokenizer: "PreTrainedTokenizerBase",
        processor: Any,
        prompt: PromptTemplate,
        cutoff_len: int,
        answers: Answers | None = None,
        family: Family | None = None,
        fold_captions: bool = False,
    ) -> None:
        self.template, self.tokenizer, self.processor, self.family = template, tokenizer, processor, family
        self.prompt, self.cutoff_len = prompt, cutoff_len
        plugin = template.mm_plugin
        media = [token for token in (plugin.image_token, plugin.video_token, plugin.audio_token) if token]
        self.plain = PlainText(tokenizer, [*_PLACEHOLDERS, *media], fold=fold_captions)
        self.tail = self._assistant_header()
        self.answer_budget = max([ANSWER_BUDGET, *map(len, map(self.encode_answer, _longest(answers or Answers())))])

    def _assistant_header(self) -> list[int]:
        """The token ids that end every prompt of this template, whatever the question."""
        one, other = (self._encode_text([{"role": "user", "content": text}], "")[0] for text in ("0", "a"))
        length = next(i for i, pair in enumerate(zip(reversed(one), reversed(other), strict=False)) if len({*pair}) > 1)
        if length == 0:
            raise UserError("The template puts nothing between the question and the answer; it cannot be used here.")
        return one[-length:]

    def _encode_text(self, messages: list[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
        pair = [*messages, {"role": "assistant", "content": answer}]
        return self.template.encode_multiturn(self.tokenizer, pair)[-1]

    def prompt_ids(self, caption: str, images: list[Image.Image], guidance: str = "") -> list[int]:
        """Token ids of the question about a caption and an image, whatever their number."""
        question = [{"role": "user", "content": self.prompt.render(caption, guidance)}]
        plugin = self.template.mm_plugin
        expanded = plugin.process_messages(question, images, [], [], self.processor)
        prefix, _ = plugin.process_token_ids([], [], images, [], [], self.tokenizer, self.processor)
        return prefix + self._encode_text(expanded, "")[0]

    @property
    def budget(self) -> int:
        """Most tokens that a prompt may have."""
        return self.cutoff_len - self.answer_budget

    def image_tokens(self, width: int, height: int) -> int:
        """Count the tokens that an image of this size takes in a prompt.

        Predicted without processing pixels, where the family can. Otherwise all that a prompt has in the place of the
        image is counted, separators too.

        Raises:
            ValueError: what the processor says of an image that it does not take.
        """
        plugin = self.template.mm_plugin
        predicted = None
        if self.family is not None:
            predicted = self.family.image_tokens(plugin, self.processor, width, height)
        if predicted is not None:
            return predicted
        image = Image.new("L", (width, height))
        message = [{"role": "user", "content": IMAGE_PLACEHOLDER}]
        expanded = plugin.process_messages(message, [image], [], [], self.processor)
        prefix, _ = plugin.process_token_ids([], [], [image], [], [], self.tokenizer, self.processor)
        return len(prefix) + len(self.tokenizer.encode(expanded[0]["content"], add_special_tokens=False))

    def count(self, caption: str, image: Image.Image, guidance: str = "") -> int:
        """Tokens of the whole question about a meme; more than `budget` means that its caption will be shortened."""
        return len(self.prompt_ids(self.plain(caption), [image], self.plain(guidance)))

    def encode(self, caption: str, image: Image.Image, guidance: str = "") -> EncodedPrompt:
        """Tokens of the question about a meme, the caption shortened if it must be.

        Args:
            caption: The caption.
            image: The image.
            guidance: Text between image and question (see `PromptTemplate.render`); it is never shortened.

        Raises:
            UserError: not even the empty caption fits, or the prompt does not end in the assistant header.
        """
        encoded: dict[str, list[int]] = {}
        caption, guidance = self.plain(caption), self.plain(guidance)

        def excess(text: str) -> int:
            encoded[text] = self.prompt_ids(text, [image], guidance)
            return len(encoded[text]) - self.budget

        fitted = fit_caption(
            caption,
            excess,
            encode=lambda text: self.tokenizer.encode(text, add_special_tokens=False),
            decode=lambda ids: self.plain(cast(str, self.tokenizer.decode(ids, skip_special_tokens=True))),
        )
        if fitted is None:
            raise UserError(
                f"its image and question alone{' (with the guidance)' if guidance else ''} need "
                f"{min(map(len, encoded.values()))} tokens and {self.answer_budget} are kept for the answer, but "
                f"`cutoff_len` is {self.cutoff_len}; raise it or lower `image_max_pixels`"
            )
        ids = encoded[fitted]
        if ids[-len(self.tail) :] != self.tail:
            raise UserError("its prompt does not end in the template's assistant header")
        return EncodedPrompt(ids, fitted != caption, fitted)

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of an answer, the end-of-turn tokens included."""
        target = self._encode_text([{"role": "user", "content": ""}], self.plain(answer))[1]
        return target + [self.tokenizer.eos_token_id] * self.template.efficient_eos

    def answer_token_ids(self, answers: Answers) -> list[int]:
        """First token id of each answer, in class order: the tokens that the LM head's score compares. Empty where an
        answer may list any number of classes: no single token stands for them.

        Raises:
            UserError: two answers begin with the same token.
        """
        if answers.several:
            return []
        first: dict[int, str] = {}
        for word in answers.words:
            token = self.encode_answer(word)[0]
            if token in first:
                raise UserError(
                    f"The answers {first[token]!r} and {word!r} begin with the same token, by which the LM head tells "
                    "classes apart; give the data answers with different first words."
                )
            first[token] = word
        return list(first)


def _longest(answers: Answers) -> list[str]:
    """Answers of which one is the longest."""
    return [", ".join(answers.words)] if answers.several else list(answers.words)
