"""Harm-P, the US politics part of HarMeme (Pramanick et al., Findings of EMNLP 2021), version 1."""

from collections.abc import Mapping

from ra_hmd.data.files import jsonl_rows
from ra_hmd.data.readers.base import Expected, Found, sharegpt_names
from ra_hmd.data.readers.harm_c import HarMeme
from ra_hmd.errors import UserError

_V0_TRAIN_ROWS = 3020


class HarmP(HarMeme):
    """Harm-P V1. V0 is refused: it has duplicates, and its authors call it obsolete for harmfulness."""

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

    def describe(self, found: Found) -> Found:
        train = next((part.path for part in found.parts if part.split == "train"), None)
        why = "its folder says so" if "V0" in found.layout else ""
        if train is not None and not why and "_v1" not in train.name.lower():
            rows = sum(1 for _ in jsonl_rows(train))
            why = f"{train.name} has {rows} rows, V1 has 2938" if rows == _V0_TRAIN_ROWS else ""
        if why:
            raise UserError(
                f"{found.parts[0].path.parent} is Harm-P V0 ({why}). It contains duplicates, and its authors call it "
                "obsolete for harmfulness: use V1 (HarMeme_V1/Annotations/Harm-P, files *_v1.jsonl)."
            )
        return found
