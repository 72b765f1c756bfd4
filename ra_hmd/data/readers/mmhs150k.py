"""Reader of MMHS150K, 150,000 tweets with images (Gomez et al., WACV 2020)."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ra_hmd.core.errors import UserError
from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import AnnotationFile, LocatedCopy, Reader, register_reader, sharegpt_names
from ra_hmd.data.readers.tasks import HATE, Expected, choice_task
from ra_hmd.data.readers.tree import Tree, only
from ra_hmd.data.rows import Row, json_rows, read_lines

TYPES = ("not hate", "racist", "sexist", "homophobe", "religion", "other hate")
_SPLITS = ("train", "val", "test")
_LINKS = re.compile(r"\s*https\S+")
_MENTIONS = re.compile(r"@\S+\s?")


@register_reader
class Mmhs150k(Reader):
    """Reader of MMHS150K.

    A meme is hateful if at least two of its three votes are for any kind of hate. Ids are text: they exceed 2^53. The
    caption is the tweet without links and mentions, as in RGCL; the words that OCR read on the image are
    `extras["img_text"]`.
    """

    name = "mmhs150k"
    title = "MMHS150K"
    licence = "none found; tweets are under the platform's terms"
    owner = "the authors' project page"
    looked_for = "MMHS150K_GT.json and splits/train_ids.txt, val_ids.txt, test_ids.txt"
    tasks = (HATE, choice_task("type", TYPES, "What kind of hate does it show?"))
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(134823),
            "val": Expected(5000, {"hate": (2500, 2500)}),
            "test": Expected(10000, {"hate": (5000, 5000)}),
        }
    }
    sharegpt = sharegpt_names(
        "mmhs150k", "MMHS150K/sharegpt_MMHS150K_{}_instructblip.json", {"train": "", "val": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        found = []
        for path in tree.named(r"mmhs150k_gt\.json"):
            splits = {}
            for split in _SPLITS:
                named = [file for file in tree.named(rf"{split}_ids\.txt") if file.is_relative_to(path.parent)]
                if (file := only(named, f"{self.title}, {split} ids", copies=True)) is not None:
                    splits[split] = file
            missing = [f"{split}_ids.txt" for split in _SPLITS[1:] if split not in splits]
            if missing:
                raise UserError(f"{self.title}: {path.parent} lacks splits/{' and '.join(missing)}; get the whole set.")
            notes = _overlap_notes({split: _ids(file) for split, file in splits.items()}, splits)
            found.append(LocatedCopy("official files", (AnnotationFile(path),), "official", splits, notes=notes))
        return found

    def rows(self, part: AnnotationFile, copy: LocatedCopy) -> Iterator[Row]:
        val, test = _ids(copy.others["val"]), _ids(copy.others["test"])
        listed = _ids(copy.others["train"]) if "train" in copy.others else frozenset()
        if listed & (val | test):
            listed = frozenset()  # a copy with a wrong train list: train is then what the other two leave
        texts = part.path.parent / "img_txt"
        has_texts = texts.is_dir()
        for row in json_rows(part.path):
            tweet = row.values.get("id", "")
            split = "val" if tweet in val else "test" if tweet in test else "train"
            if split == "train" and listed and tweet not in listed:
                yield replace(row, problem="its id is in none of the split files")
                continue
            more = {"split": split, "img_text": _img_text(texts, tweet)} if has_texts else {"split": split}
            yield replace(row, values=row.values | more)

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        votes = values["labels"]
        if len(votes) != 3 or not all(vote in range(len(TYPES)) for vote in votes):
            raise ValueError(f"labels is {votes!r}; it should be three votes of 0 to {len(TYPES) - 1}")
        kind, count = Counter(votes).most_common(1)[0]
        return Meme(
            id=values["id"],
            image=Path(f"{values['id']}.jpg"),
            text=_MENTIONS.sub("", _LINKS.sub("", values["tweet_text"])),
            raw_text=values["tweet_text"],
            label=int(sum(vote > 0 for vote in votes) >= 2),
            split=values["split"],
            extras={
                **{key: value for key, value in values.items() if key not in ("id", "tweet_text", "split")},
                "type": kind if count >= 2 else None,
            },
        )


def _ids(path: Path) -> frozenset[str]:
    return frozenset(line.strip() for line in read_lines(path) if line.strip())


def _overlap_notes(ids: Mapping[str, frozenset[str]], files: Mapping[str, Path]) -> tuple[str, ...]:
    both = ids["val"] & ids["test"]
    if both:
        raise UserError(
            f"{files['val']} and {files['test']} share {len(both)} ids, e.g. {min(both)}; get an intact copy."
        )
    wrong = ids.get("train", frozenset()) & (ids["val"] | ids["test"])
    if not wrong:
        return ()
    return (
        f"train_ids.txt lists {len(wrong)} ids of val or test, a fault of some mirrors; train is taken as what is in "
        "neither, as the authors define it",
    )


def _img_text(folder: Path, tweet: str) -> str | None:
    """Return the words that OCR read on the image of a tweet; None if there are none."""
    try:
        return json.loads((folder / f"{tweet}.json").read_text(encoding="utf-8-sig"))["img_text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
