"""Reader of Harm-P, the US politics part of HarMeme (Pramanick et al., Findings of EMNLP 2021), version 1."""

from collections.abc import Mapping
from dataclasses import replace

from ra_hmd.core.errors import UserError
from ra_hmd.data.readers.base import LocatedCopy, register_reader, sharegpt_names
from ra_hmd.data.readers.harm_c import V0, HarMeme
from ra_hmd.data.readers.tasks import Expected
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import jsonl_rows

_V0_TRAIN_ROWS = 3020


@register_reader
class HarmP(HarMeme):
    """Reader of Harm-P V1.

    V0 is never read: it has duplicates, and its authors call it obsolete for harmfulness.
    """

    name = "harm_p"
    title = "Harm-P (HarMeme, US politics)"
    looked_for = "train_v1.jsonl, val_v1.jsonl, test_v1.jsonl (or without _v1) with images named memes_N.png"
    prefix = "memes_"
    stems = ("_v1", "")
    expected: Mapping[str, Mapping[str, Expected]] = {
        "V1": {
            # One train row has an empty intensity: harmful, of no grade.
            "train": Expected(2938, {"hate": (1450, 1488), "intensity": (1450, 1365, 122)}),
            "val": Expected(177, {"hate": (88, 89), "intensity": (88, 81, 8)}),
            "test": Expected(355, {"hate": (184, 171), "intensity": (184, 159, 12)}),
        }
    }
    sharegpt = sharegpt_names(
        "harmp", "HarmP/sharegpt_HarmP_{}_instructblip.json", {"train": "", "val": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        judged = [(one, _why_v0(one)) for one in super().layouts(tree)]
        usable = [one for one, why in judged if not why]
        obsolete = [(one.parts[0].path.parent, why) for one, why in judged if why]
        if obsolete and not usable:
            folder, why = obsolete[0]
            raise UserError(
                f"{folder} is Harm-P V0 ({why}). It contains duplicates, and its authors call it "
                "obsolete for harmfulness: use V1 (HarMeme_V1/Annotations/Harm-P, files *_v1.jsonl)."
            )
        notes = tuple(f"also there and not read: Harm-P V0 ({why}) in {folder}" for folder, why in obsolete)
        return [replace(one, notes=notes) for one in usable]


def _why_v0(copy: LocatedCopy) -> str:
    """Return how a copy is recognised as V0; "" for V1."""
    if copy.layout == V0:
        return "its folder says so"
    train = next((part.path for part in copy.parts if part.split == "train"), None)
    if train is None or "_v1" in train.name.lower():
        return ""
    rows = sum(1 for _ in jsonl_rows(train))
    return f"{train.name} has {rows} rows, V1 has 2938" if rows == _V0_TRAIN_ROWS else ""
