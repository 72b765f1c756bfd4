"""Prompts and answers. Training files, Stage 1, extraction and inference all render their questions here."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ra_hmd.core.errors import UserError
from ra_hmd.data.text import well_formed

IMAGE_PLACEHOLDER = "<image>"
TEXT_SLOT = "{text}"
OFFICIAL_PROMPT = f'{IMAGE_PLACEHOLDER} This is an image with: "{TEXT_SLOT}" written on it. Is it hateful?'
OFFICIAL_ANSWERS = ("No. It is not a hateful meme.", "Yes. It is a hateful meme.")
NO_CLASS = "none"
"""Answer about a meme that has none of several classes."""

# What a chat template or LLaMA-Factory would read as markup: media placeholders and `<|…|>` control tokens.
_SPECIAL = re.compile(r"<(/?(?:image|video|audio|think|tool_call|tool_response)|\|[^<>\s]*\|)>", re.IGNORECASE)


def without_markup(text: str) -> str:
    """Return a text that is safe inside a prompt: `<image>` becomes `< image >`; see `clean_caption`."""
    return _SPECIAL.sub(r"< \1 >", well_formed(text))


def clean_caption(text: str) -> str:
    """Return a caption that is safe inside a prompt.

    Outer blanks are removed, markup is spaced out (`<image>` → `< image >`), and lone surrogates, which no tokenizer
    accepts, are replaced. The function is idempotent: a caption read from a training file gives the same prompt.
    """
    return without_markup(text).strip()


def special_strings(text: str) -> list[str]:
    """Return the parts of a caption that a chat template would read as markup, and that `clean_caption` spaces out."""
    return [match[0] for match in _SPECIAL.finditer(text)]


@dataclass(frozen=True)
class PromptTemplate:
    """Template of a question about a meme: text with one `<image>`, and at most one `{text}` for the caption."""

    template: str = OFFICIAL_PROMPT

    def __post_init__(self) -> None:
        if self.template.count(IMAGE_PLACEHOLDER) != 1 or self.template.count(TEXT_SLOT) > 1:
            raise UserError(
                f"The prompt {self.template!r} must hold {IMAGE_PLACEHOLDER} once and {TEXT_SLOT} at most once."
            )

    def render(self, caption: str, guidance: str = "") -> str:
        """Render the question about a caption.

        Args:
            caption: The caption.
            guidance: Text that stands after the image and before the question, a blank line between; "" for none. The
                questions of training files have none: it is inserted when a meme is tokenised.
        """
        before, slot, after = self.template.partition(TEXT_SLOT)
        question = before + clean_caption(caption) + after if slot else before
        if not guidance:
            return question
        start, image, rest = question.partition(IMAGE_PLACEHOLDER)  # the first is the template's: captions have none
        return f"{start}{image}\n{clean_caption(guidance)}\n\n{rest.lstrip()}"

    def caption_of(self, question: str) -> str:
        """Read the caption out of a question that this template made; without `{text}` it is empty.

        Raises:
            ValueError: Another template made it.
        """
        before, slot, after = self.template.partition(TEXT_SLOT)
        ours = question.startswith(before) and question.endswith(after) and len(question) >= len(before) + len(after)
        if not ours or (not slot and question != before):
            raise ValueError(
                f"its question was not made by the prompt {self.template!r}: {question[:120]!r}; give the prompt of "
                "this data (`prompt_template`)"
            )
        return question[len(before) : len(question) - len(after)]


def fit_caption(
    caption: str,
    excess: Callable[[str], int],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> str | None:
    """Return the longest beginning of a caption, cut between tokens, whose sample fits the token budget.

    Args:
        caption: The caption; returned unchanged if it fits.
        excess: Tokens by which a sample with the given caption is over budget (zero or less: it fits).
        encode: Tokenise a caption.
        decode: Undo `encode`.

    Returns:
        The caption that fits, or None if not even the empty one does.
    """
    over = excess(caption)
    if over <= 0:
        return caption
    tokens = encode(clean_caption(caption))
    keep = len(tokens)
    while over > 0 and keep > 0:
        keep = max(keep - over, 0)
        # A cut inside a multi-byte character leaves replacement characters at the end.
        caption = clean_caption(decode(tokens[:keep]).rstrip("\ufffd"))
        over = excess(caption)
    return caption if over <= 0 else None


@dataclass(frozen=True)
class Answers:
    """The answers in class order; of two classes, index 0 is the negative one.

    Attributes:
        words: First words of the answer of each class; with `several`, the name that an answer lists for each class.
        several: Whether an answer lists any number of classes, separated by commas, or `none`.
    """

    words: tuple[str, ...] = ("No", "Yes")
    several: bool = False

    def __post_init__(self) -> None:
        names = [_folded(word) for word in self.words]
        fewest = 1 if self.several else 2
        if len(set(names)) < max(len(names), fewest) or not all(re.search(r"\w", name) for name in names):
            raise UserError(
                f"Answers {self.words!r} must be {'one' if self.several else 'two'} or more, all different, with "
                "letters or digits in each."
            )
        if self.several and NO_CLASS in names:
            raise UserError(f"Answers {self.words!r}: {NO_CLASS!r} means that a meme has no class; name it otherwise.")

    def label_of(self, answer: str) -> int | tuple[int, ...]:
        """Return the class index of an answer; with `several`, the class indices that it lists.

        An answer is recognised by its first words; case is ignored, and the longest match counts.

        Raises:
            ValueError: The answer is unknown.
        """
        return self._listed(answer) if self.several else self._first(answer)

    def _first(self, answer: str) -> int:
        index, _ = self._match(re.sub(r"^\W+", "", _folded(answer)))
        if index is None:
            expected = " or ".join(map(repr, self.words))
            raise ValueError(f"answer {answer[:60]!r} begins with neither {expected}")
        return index

    def _listed(self, answer: str) -> tuple[int, ...]:
        rest = _folded(answer).removesuffix(".")
        if rest == NO_CLASS:
            return ()
        found = set()
        while True:
            index, rest = self._match(rest)
            if index is None or (rest and not rest.startswith(",")):
                raise ValueError(f"answer {answer[:60]!r} is no list of {', '.join(self.words)}, or {NO_CLASS!r}")
            found.add(index)
            if not rest:
                return tuple(sorted(found))
            rest = rest.removeprefix(",").lstrip()

    def _match(self, folded: str) -> tuple[int | None, str]:
        """Return the class whose name begins a folded text (the longest match), and the rest of the text."""
        for index in sorted(range(len(self.words)), key=lambda i: -len(_folded(self.words[i]))):
            name = _folded(self.words[index])
            if re.match(re.escape(name) + r"(?!\w)", folded):
                return index, folded[len(name) :].lstrip()
        return None, folded


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
