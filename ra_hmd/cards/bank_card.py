"""Facts for the card of an example bank: counts of its rows, and its history without names."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.bank.bank import Bank
from ra_hmd.cards.render import Markdown, code, short, table

if TYPE_CHECKING:
    from ra_hmd.cards.render import CardMetadata


def bank_facts(place: str | Path, stated: "CardMetadata") -> dict[str, Any]:
    """Variables of `bank_card.md.j2`, of the bank's newest version.

    Raises:
        UserError: no bank, or one that cannot be opened.
    """
    from huggingface_hub import DatasetCardData

    with Bank.open(place) as bank:
        info, log = bank.info(), list(bank.log)
        rows = [bank.row(number) for number in range(len(bank))]
    name = stated.name or f"Example bank {short(Path(str(place)).name or place)}"
    data = DatasetCardData(
        language=list(stated.languages) or None,
        license=stated.licence or "other",
        pretty_name=name,
        tags=["hateful-meme-detection", "retrieval-bank"],
    )
    sources = Counter(short(row["source"]) for row in rows)
    times = sorted(row["time"] for row in rows if row["time"])
    counts = info["rows_per_class"]
    return {
        "card_data": Markdown(data.to_yaml()),
        "stated": stated,
        "name": name,
        "info": info,
        "classes": table(["class", "memes"], list(enumerate(counts))),
        "sources": table(["source", "memes"], [[source or "–", count] for source, count in sources.most_common()]),
        "times": (times[0], times[-1]) if times else None,
        "hashes": sum(int(row["image_hash"], 16) != 0 for row in rows),
        "fingerprint": table(
            ["part", "value"],
            [[key, code(short(value))] for key, value in info["fingerprint"].items() if value not in (None, [])],
        ),
        "log": table(
            ["version", "time", "change", "added", "removed", "restored", "relabelled", "rows then"],
            [
                [entry.version, entry.time, _change(entry.action, entry.restores),
                 *(entry.counts[key] for key in ("added", "removed", "restored", "relabelled", "rows"))]
                for entry in log
            ],
        ),
        "authors": len({entry.author for entry in log}),
    }  # fmt: skip


def _change(action: str, restores: int | None) -> str:
    return action if restores is None else f"{action} to {restores}"
