"""The one prompt builder: training files, Stage 1, extraction and inference all ask a meme's question here."""

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
"""The answer about a meme that has none of several classes."""

# What a chat template or LLaMA-Factory would read as markup: media placeholders and `<|…|>` control tokens.
_SPECIAL = re.compile(r"<(/?(?:image|video|audio|think|tool_call|tool_response)|\|[^<>\s]*\|)>", re.IGNORECASE)


def clean_caption(text: str) -> str:
    """A caption that is safe inside a prompt: outer blanks removed, markup spaced out (`<image>` → `< image >`), and
    halves of surrogate pairs, which no tokenizer takes, replaced.

    Idempotent, so that a caption read back from a training file gives the same prompt.
    """
    return _SPECIAL.sub(r"< \1 >", well_formed(text)).strip()


def special_strings(text: str) -> list[str]:
    """What in a caption a chat template would read as markup, and `clean_caption` spaces out."""
    return [match[0] for match in _SPECIAL.finditer(text)]


@dataclass(frozen=True)
class PromptTemplate:
    """A question about a meme: text with one `<image>` and at most one `{text}`, which takes the caption."""

    template: str = OFFICIAL_PROMPT

    def __post_init__(self) -> None:
        if self.template.count(IMAGE_PLACEHOLDER) != 1 or self.template.count(TEXT_SLOT) > 1:
            raise UserError(
                f"The prompt {self.template!r} must hold {IMAGE_PLACEHOLDER} once and {TEXT_SLOT} at most once."
            )

    def render(self, caption: str) -> str:
        """The question for `caption`."""
        before, slot, after = self.template.partition(TEXT_SLOT)
        return before + clean_caption(caption) + after if slot else before

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
    """The longest beginning of `caption`, cut between tokens, whose sample fits the token budget.

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
    """What answers say, in class order: index 0 is the first, for two classes the negative one.

    Attributes:
        words: How the answer of each class begins; with `several`, the name that an answer lists for each class.
        several: An answer may name any number of classes, with commas between them, or `none`.
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
        """Class index of an answer, by its first words (case is ignored, the longest match counts); with `several`, the
        class indices that it lists.

        Raises:
            ValueError: it begins with none of ours, or is no list of ours.
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
        """The class that folded text begins with, the longest if several do, and what comes after it."""
        for index in sorted(range(len(self.words)), key=lambda i: -len(_folded(self.words[i]))):
            name = _folded(self.words[index])
            if re.match(re.escape(name) + r"(?!\w)", folded):
                return index, folded[len(name) :].lstrip()
        return None, folded


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
