"""Reader of propaganda techniques in memes (Dimitrov et al., ACL 2021): 22 labels, any number per meme."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import AnnotationFile, LocatedCopy, Reader, register_reader, sharegpt_names, split_files
from ra_hmd.data.readers.tasks import CHOICE_PROMPT, Expected, Task, choice_task
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row

TECHNIQUES = (
    "Appeal to authority",
    "Appeal to fear/prejudice",
    "Appeal to (Strong) Emotions",
    "Bandwagon",
    "Black-and-white Fallacy/Dictatorship",
    "Causal Oversimplification",
    "Doubt",
    "Exaggeration/Minimisation",
    "Flag-waving",
    "Glittering generalities (Virtue)",
    "Loaded Language",
    "Misrepresentation of Someone's Position (Straw Man)",
    "Name calling/Labeling",
    "Obfuscation, Intentional vagueness, Confusion",
    "Presenting Irrelevant Data (Red Herring)",
    "Reductio ad hitlerum",
    "Repetition",
    "Slogans",
    "Smears",
    "Thought-terminating cliché",
    "Transfer",
    "Whataboutism",
)


_COUNTS_TRAIN = (19, 66, 68, 2, 19, 31, 61, 60, 36, 84, 360, 32, 252, 5, 2, 15, 10, 45, 450, 20, 61, 47)


def _about(index: int, technique: str) -> Task:
    ascii_only = unicodedata.normalize("NFKD", technique).encode("ascii", "ignore").decode()
    return Task(
        re.sub(r"[^a-z]+", "_", ascii_only.lower()).strip("_"),
        (f"no {technique}", technique),
        f"{CHOICE_PROMPT}Does it use the propaganda technique {technique}?",
        ("No. It does not use it.", "Yes. It uses it."),
        member_of=("techniques", index),
    )


@register_reader
class Propaganda(Reader):
    """Reader of the propaganda techniques data set.

    There is no official binary label: `Meme.label` is None, `extras["techniques"]` lists the class indices, and each
    technique is a binary task of its own.
    """

    name = "propaganda"
    title = "Propaganda techniques in memes (ACL 2021)"
    licence = "the repository is under BSD, a licence written for its software; ask about the memes"
    owner = "the authors' repository (propaganda-techniques-in-memes on GitHub)"
    looked_for = "annotations/train.jsonl, val.jsonl, test.jsonl with images named N_image.png or N_image_batch_M.png"
    tasks = (
        choice_task("techniques", TECHNIQUES, "Which propaganda techniques does it use?", multi_label=True),
        *(_about(index, technique) for index, technique in enumerate(TECHNIQUES)),
    )
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(687, {"techniques": _COUNTS_TRAIN}),
            "val": Expected(63),
            "test": Expected(200),
        }
    }
    sharegpt = sharegpt_names(
        "propaganda",
        "Propaganda/sharegpt_Propaganda_{}_instructblip.json",
        {"train": "", "val": "_dev", "test": "_test"},
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        files = split_files(tree, {"image": r"\d+_image(_batch_\d+)?\.png", "labels": "(?s).*"})
        return [LocatedCopy("official annotations", parts, "official") for parts in files]

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        indices = sorted({_index(label) for label in values["labels"]})
        return Meme(
            id=self.meme_id(values["id"], part.split),
            image=Path(values["image"]),
            text=values["text"],
            split=part.split,
            extras={
                **{key: value for key, value in values.items() if key not in ("id", "image", "text")},
                "techniques": indices,
            },
        )


_INDEX = {unicodedata.normalize("NFC", name).casefold(): index for index, name in enumerate(TECHNIQUES)}


def _index(label: str) -> int:
    """Return the index of a technique, whose é may be one character or two."""
    key = unicodedata.normalize("NFC", label).strip().casefold()
    if key not in _INDEX:
        raise ValueError(f"technique {label!r} is none of the 22")
    return _INDEX[key]
