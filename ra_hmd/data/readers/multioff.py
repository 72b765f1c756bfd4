"""Reader of MultiOFF, offensive memes around the 2016 US election (Suryawanshi et al., TRAC 2020)."""

import re
from collections.abc import Mapping
from pathlib import Path

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import AnnotationFile, LocatedCopy, Reader, register_reader, sharegpt_names
from ra_hmd.data.readers.tasks import Expected, Task
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row

_FILES = {
    "train": r"training_meme_dataset\.csv",
    "val": r"validation_meme_dataset\.csv",
    "test": r"testing_meme_dataset\.csv",
}
_LABELS = {"nonoffensiv": 0, "nonoffensive": 0, "offensiv": 1, "offensive": 1}


@register_reader
class MultiOff(Reader):
    """Reader of MultiOFF.

    An id is the whole file name, since some names have two suffixes. The tables spell the negative class
    `Non-offensiv`, cleaned copies spell it otherwise; a row with an unknown spelling is rejected.
    """

    name = "multioff"
    title = "MultiOFF"
    licence = "its record was seen to state CC BY 4.0; the code repository states nothing"
    owner = "Zenodo, record 3899868"
    looked_for = "Training_, Validation_ and Testing_meme_dataset.csv"
    tasks = (Task("hate", ("not offensive", "offensive")),)
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(445, {"hate": (258, 187)}),
            "val": Expected(149, {"hate": (91, 58)}),
            "test": Expected(149, {"hate": (91, 58)}),
        }
    }
    sharegpt = sharegpt_names(
        "multioff", "MultiOFF/sharegpt_MultiOFF_{}_instructblip.json", {"train": "", "val:dev": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        return [
            LocatedCopy(
                "official tables",
                tuple(AnnotationFile(group[split], split) for split in _FILES if split in group),
                "official",
            )
            for group in tree.groups(_FILES)
            if all(tree.first(path).keys() >= {"image_name", "sentence", "label"} for path in group.values())
        ]

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        label = re.sub(r"[^a-z]", "", values["label"].casefold())
        if label not in _LABELS:
            raise ValueError(f"label is {values['label']!r}; it should be Non-offensiv or offensive")
        return Meme(
            id=values["image_name"],
            image=Path(values["image_name"]),
            text=values["sentence"],
            label=_LABELS[label],
            split=part.split,
            extras={key: value for key, value in values.items() if key not in ("image_name", "sentence")},
        )

    def _from_sharegpt(self, row: Row, part: AnnotationFile) -> Meme:
        meme = super()._from_sharegpt(row, part)
        return Meme(meme.path.name, meme.path, meme.text, meme.label, meme.split)
