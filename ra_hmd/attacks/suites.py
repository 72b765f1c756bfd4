"""All attacks by name, and suites: named lists of variants."""

from collections.abc import Collection, Sequence

from ra_hmd.attacks import caption, characters, picture, reposting, words
from ra_hmd.attacks.base import CHANNELS, FAMILIES, SEVERITIES, SUITES, Attack, Channel, Variant
from ra_hmd.core.errors import UserError

_SMOKE = ("typos", "benign_after", "colour", "jpeg", "border")


def _by_name(*groups: Sequence[Attack]) -> dict[str, Attack]:
    attacks = [attack for group in groups for attack in group]
    found = {attack.name: attack for attack in attacks}
    if len(found) != len(attacks):
        raise ValueError("two attacks have the same name")
    return found


ATTACKS = _by_name(characters.ATTACKS, words.ATTACKS, caption.ATTACKS, picture.ATTACKS, reposting.ATTACKS)
"""Name to attack, in order of the families."""


def suite_variants(
    suite: str = "standard",
    *,
    families: Sequence[str] = (),
    attacks: Sequence[str] = (),
    severities: Sequence[int] = (),
    channels: Sequence[str] = (),
    taught: bool = False,
) -> list[Variant]:
    """Return the variants of a suite, in order.

    Args:
        suite: One of `SUITES`.
        families: Keep these families only; () keeps all.
        attacks: Keep these attacks only; () keeps all.
        severities: In place of the severities of the suite.
        channels: In place of the channels of the suite; attacks that have none of them are left out.

        taught: Whether there is a teacher: attacks that need one are left out where there is none.

    Raises:
        UserError: A name is unknown, an attack was named that needs a teacher, or nothing is left.
    """
    _check("suite", [suite], SUITES)
    _check("family", families, FAMILIES)
    _check("attack", attacks, ATTACKS)
    _check("severity", severities, SEVERITIES)
    _check("channel", channels, CHANNELS)
    needy = [name for name in attacks if ATTACKS[name].needs and not taught]
    if needy:
        raise UserError(f"Attack {needy[0]!r} needs {ATTACKS[needy[0]].needs}.")
    names = set(attacks or (_SMOKE if suite == "smoke" else ATTACKS))
    found = [
        Variant(attack, severity, channel)
        for attack in ATTACKS.values()
        if attack.name in names and (taught or not attack.needs) and (not families or attack.family in families)
        for severity in (_severities(suite, attack) if not severities else sorted(set(severities)))
        for channel in _channels(suite, attack, channels)
    ]
    if not found:
        raise UserError(f"Suite {suite!r} has no such attack, severity and channel; leave one of the choices out.")
    return found


def _check(noun: str, given: Collection[object], known: Collection[object]) -> None:
    for one in given:
        if one not in known:
            raise UserError(f"There is no {noun} {one!r}; there are {', '.join(map(str, known))}.")


def _severities(suite: str, attack: Attack) -> Sequence[int]:
    if not any(attack.parameters):
        return (1,)
    return SEVERITIES if suite in ("standard", "full") else (2,)


def _channels(suite: str, attack: Attack, chosen: Collection[str]) -> list[Channel]:
    if chosen or suite == "reread":
        return [channel for channel in attack.channels if channel in (chosen or ("reread",))]
    seen: list[Channel] = [channel for channel in attack.channels if channel != "reread"]
    return seen if suite == "full" else seen[:1]
