"""The `Attack` type: a change of a meme's caption or picture that leaves its label as it is."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from ra_hmd.data.meme import Meme

Family = Literal["characters", "words", "caption", "picture", "reposting", "white_box"]
Channel = Literal["field", "picture", "both", "reread"]
Target = Literal["text", "drawing", "image"]
Severity = Literal[1, 2, 3]
FAMILIES: tuple[Family, ...] = ("characters", "words", "caption", "picture", "reposting")
"""Families of the suites."""
CHANNELS: tuple[Channel, ...] = get_args(Channel)
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
TEXT_CHANNELS: tuple[Channel, ...] = ("both", "field", "picture", "reread")
PICTURE_CHANNELS: tuple[Channel, ...] = ("picture", "reread")
SUITES = {
    "standard": "each attack at three severities; those of words and letters in picture and field",
    "quick": "the attacks of standard at severity 2",
    "smoke": "one attack of each family at severity 2",
    "full": "each attack at three severities through each of its channels but reread",
    "reread": "each attack on the picture at severity 2, its caption read by OCR; and all pictures unchanged",
}
"""Name of a suite to what it holds."""


@dataclass(frozen=True)
class Attack:
    """An attack with three severities.

    Attributes:
        name: Name, of small letters and `_`.
        family: Family of the attack.
        target: What `function` changes. `text`: (caption, generator, **parameters) → caption. `drawing`: how the
            caption stands in the picture, (`CaptionLayout`, generator, **parameters) → image. `image`: (image,
            generator, **parameters) → image.
        function: The change. All random choices come from the generator.
        parameters: Parameters of severities 1, 2 and 3.
        channels: Channels that the attack can go through; the first is the one of suite `standard`.
        positive_only: Whether it is applied to memes of class 1 and above alone, because on class 0 it would show
            nothing or change the label.
        needs: What else the attack needs; "" where it needs nothing.
    """

    name: str
    family: Family
    target: Target
    function: Callable[..., Any]
    parameters: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]
    channels: tuple[Channel, ...]
    positive_only: bool = False
    needs: str = ""

    def concerns(self, meme: "Meme") -> bool:
        """Whether the attack is applied to memes of this label."""
        return not self.positive_only or meme.label not in (None, 0, (), (0,))

    def classes(self, count: int) -> list[int] | None:
        """Classes that the attack is applied to in a task of `count` classes; None: all."""
        return list(range(1, count)) if self.positive_only else None

    def generator(self, severity: int, seed: int, clean_id: str) -> random.Random:
        """The generator of one meme. It does not depend on the channel, so channels carry the same change."""
        return random.Random(f"{seed}/{self.name}/{severity}/{clean_id}")

    def change(self, value: Any, severity: int, generator: random.Random) -> Any:
        """Apply the attack to what `target` says."""
        return self.function(value, generator, **self.parameters[severity - 1])


@dataclass(frozen=True)
class Variant:
    """An attack at one severity through one channel.

    Attributes:
        attack: The attack.
        severity: 1, 2 or 3.
        channel: One of the attack's channels.
    """

    attack: Attack
    severity: int
    channel: Channel

    @property
    def name(self) -> str:
        """Name of the variant: name of its folder, and suffix of its ids."""
        parts = [self.attack.name, str(self.severity)]
        return "-".join(parts if len(self.attack.channels) == 1 else [*parts, self.channel])
