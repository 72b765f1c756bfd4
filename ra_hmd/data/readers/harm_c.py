"""Reader of Harm-C, the COVID-19 part of HarMeme (Pramanick et al., Findings of ACL 2021 and of EMNLP 2021).

`HarMeme` is the common base class of the readers of Harm-C and Harm-P.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import AnnotationFile, LocatedCopy, Reader, register_reader, sharegpt_names, split_files
from ra_hmd.data.readers.tasks import CHOICE_PROMPT, Expected, Task, choice_task
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row

INTENSITIES = ("not harmful", "somewhat harmful", "very harmful")
HARM_TARGETS = ("individual", "organization", "community", "society")
V0 = "V0 folders"


class HarMeme(Reader):
    """Reader of HarMeme records: `labels[0]` is the intensity, the rest are targets.

    `not harmful` is class 0 and anything else class 1, as in the official code. The intensity is compared as a whole,
    since "harmful" is part of every label.
    """

    licence = "MIT for the authors' repository; the images are a separate download"
    owner = "the authors' repositories (MOMENTA, HarMeme on GitHub)"
    tasks = (
        Task("hate", ("not harmful", "harmful")),
        Task("intensity", INTENSITIES, f"{CHOICE_PROMPT}How harmful is it? Answer with one of: "
             f"{', '.join(INTENSITIES)}.", INTENSITIES),
        choice_task("target", HARM_TARGETS, "Whom does it harm?", multi_label=True),
    )  # fmt: skip
    prefix: str
    stems: tuple[str, ...] = ("",)

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        first = {"image": rf"{self.prefix}\d+\.png", "labels": "(?s).*"}
        files = [parts for stem in self.stems for parts in split_files(tree, first, stem)]
        found = [LocatedCopy(_layout(parts[0].path), parts, "V1") for parts in files]
        return sorted(found, key=lambda one: one.layout == V0)

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        labels = values["labels"]
        if not labels or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels is {labels!r}; it should begin with one of {', '.join(INTENSITIES)}")
        intensity, *targets = labels
        if intensity not in (*INTENSITIES, ""):  # one row of Harm-P has an empty intensity, which counts as harmful
            raise ValueError(f"intensity is {intensity!r}; known are {', '.join(INTENSITIES)}")
        unknown = [target for target in targets if target not in HARM_TARGETS]
        if unknown:
            raise ValueError(f"targets {unknown!r} are not among {', '.join(HARM_TARGETS)}")
        return Meme(
            id=self.meme_id(values["id"], part.split),
            image=Path(values["image"]),
            text=values["text"],
            label=int(intensity != "not harmful"),
            split=part.split,
            extras={
                **{key: value for key, value in values.items() if key not in ("id", "image", "text")},
                "intensity": INTENSITIES.index(intensity) if intensity else None,
                "target": sorted(HARM_TARGETS.index(target) for target in targets),
            },
        )


def _layout(path: Path) -> str:
    names = {name.lower() for name in path.parts}
    if any(name.startswith("harmeme_v0") for name in names):
        return V0
    if "memes" in names and "defaults" in names:
        return "MMF's folders"
    return "RGCL's folders" if path.parent.parent.name == "gt" else "V1 annotations"


@register_reader
class HarmC(HarMeme):
    """Reader of Harm-C, whose versions V0 and V1 have the same records."""

    name = "harm_c"
    title = "Harm-C (HarMeme, COVID-19)"
    looked_for = "train.jsonl, val.jsonl, test.jsonl with images named covid_memes_N.png"
    prefix = "covid_memes_"
    expected: Mapping[str, Mapping[str, Expected]] = {
        "V1": {
            "train": Expected(3013, {"hate": (1949, 1064), "intensity": (1949, 882, 182)}),
            "val": Expected(177, {"hate": (116, 61), "intensity": (116, 51, 10)}),
            "test": Expected(354, {"hate": (230, 124), "intensity": (230, 103, 21)}),
        }
    }
    sharegpt = sharegpt_names(
        "harmc", "HarMeme/sharegpt_Harmeme_{}_instructblip.json", {"train": "", "val": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        notes = ("V0 folders: Harm-C is expected to be the same as in V1",)
        return [replace(one, notes=notes) if one.layout == V0 else one for one in super().layouts(tree)]
