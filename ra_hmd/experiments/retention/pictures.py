"""Pictures with general questions, and memes to describe, that the tool draws itself.

Pictures show one to three pictograms of a kind with a text; the questions ask for their colour, shape and number, for
the text, and for a description. None of them asks what the model was tuned for.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.data.prompt import IMAGE_PLACEHOLDER, PromptTemplate
from ra_hmd.data.synthetic.confounders import CAPTION_PROMPT, DOMAINS, caption_corpus, descriptions
from ra_hmd.data.synthetic.pictograms import PATTERNS, SIDE, STRIP, background, draw_pictogram, write_caption

Kind = Literal["colour", "shape", "count", "text", "scene", "caption"]
QUESTIONS: dict[Kind, str] = {
    "colour": "Which colour has the drawing in this picture?",
    "shape": "What does the drawing in this picture show?",
    "count": "How many drawings are in this picture?",
    "text": "Which text is written in this picture?",
    "scene": "Describe this picture in one sentence.",
}
"""General questions about a picture, by what they ask for."""
NUMBERS = (("one", "1"), ("two", "2"), ("three", "3"))
_SCALES = ((56, 80), (42, 52), (28, 34))  # smallest and largest pictogram where there are one, two, three


@dataclass(frozen=True)
class Item:
    """One question about a drawn picture.

    Attributes:
        id: Number of the picture and kind of the question.
        picture: Name of the picture; questions about one picture belong together.
        kind: What is asked for; `caption`: a description of a meme.
        image: The picture.
        text: Text that is written in it.
        question: The question, with `<image>`.
        expected: Words that a right answer has; of each group one word.
        description: The drawn description, for `caption`.
    """

    id: str
    picture: str
    kind: Kind
    image: Image.Image = field(repr=False, compare=False)
    text: str
    question: str
    expected: tuple[tuple[str, ...], ...]
    description: str | None = None

    def stated(self) -> dict[str, Any]:
        """Everything but the pixels, for records."""
        return {
            "id": self.id,
            "picture": self.picture,
            "kind": self.kind,
            "question": self.question,
            "expected": [list(group) for group in self.expected],
            "description": self.description,
        }


def draw_questions(count: int, seed: int) -> list[Item]:
    """Draw `count` pictures and ask all of `QUESTIONS` about each."""
    bodies = {name: colour for domain in DOMAINS for name, colour in domain.bodies.items()}
    grounds = [colours for domain in DOMAINS for colours in domain.backgrounds.values()]
    nouns = {subject: words for domain in DOMAINS for subject, words in domain.nouns.items()}
    texts, items = caption_corpus(), []
    for number in range(count):
        rng = random.Random(f"{seed}/retention/picture/{number}")
        subject, body, text = rng.choice(sorted(nouns)), rng.choice(sorted(bodies)), rng.choice(texts)
        ground, drawings = rng.choice(grounds), rng.randint(1, len(NUMBERS))
        canvas = background(*ground, rng.choice(PATTERNS)).copy()
        place = rng.choice(("top", "bottom"))
        scale = rng.randint(*_SCALES[drawings - 1])
        for position in range(drawings):
            width = SIDE // drawings
            x = position * width + rng.randint(1, width - scale - 1)
            y = rng.randint(2, SIDE - STRIP - scale - 2) + (STRIP if place == "top" else 0)
            draw_pictogram(canvas, subject, bodies[body], (x, y), scale)
        image = write_caption(canvas, text, place)
        shown = nouns[subject]
        expected = {
            "colour": ((body,),),
            "shape": (shown,),
            "count": (NUMBERS[drawings - 1],),
            "text": tuple((word,) for word in text.split()),
            "scene": (shown,),
        }
        name = f"picture-{number:04d}"
        items += [
            Item(f"{name}-{kind}", name, kind, image, text, f"{IMAGE_PLACEHOLDER} {question}", expected[kind])
            for kind, question in QUESTIONS.items()
        ]
    return items


def draw_memes(count: int, seed: int) -> list[Item]:
    """Draw `count` memes as `ra-hmd data make-confounders` does, each with one of its descriptions."""
    prompt, items = PromptTemplate(CAPTION_PROMPT), []
    for number in range(count):
        rng = random.Random(f"{seed}/retention/meme/{number}")
        domain = DOMAINS[number % len(DOMAINS)]
        pair = rng.choice(domain.pairs)
        shown, topic = rng.choice(pair), rng.choice(pair)
        body = rng.choice(sorted(domain.bodies))
        text = rng.choice(domain.wordings).format(noun=rng.choice(domain.nouns[topic]))
        canvas = background(*domain.backgrounds[rng.choice(sorted(domain.backgrounds))], rng.choice(PATTERNS)).copy()
        place, scale = rng.choice(("top", "bottom")), rng.randint(*_SCALES[0])
        y = rng.randint(2, SIDE - STRIP - scale - 2) + (STRIP if place == "top" else 0)
        draw_pictogram(canvas, shown, domain.bodies[body], (rng.randint(2, SIDE - scale - 2), y), scale)
        name = f"meme-{number:04d}"
        items.append(
            Item(
                id=name,
                picture=name,
                kind="caption",
                image=write_caption(canvas, text, place),
                text=text,
                question=prompt.render(text),
                expected=(domain.nouns[shown], domain.nouns[topic]),
                description=rng.choice(descriptions(shown, body, topic, text)),
            )
        )
    return items


def fingerprint_items(items: Sequence[Item]) -> str:
    """Digest of pictures, questions and expected words."""
    parts = (part for item in items for part in (str(item.stated()).encode(), item.image.tobytes()))
    return sha256_bytes(*parts)
