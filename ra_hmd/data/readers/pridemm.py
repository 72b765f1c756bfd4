"""Reader of PrideMM (Shah et al., EMNLP 2024): hate, target, stance and humour in memes about the LGBTQ+ movement."""

from collections.abc import Mapping
from pathlib import Path

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import (
    AnnotationFile,
    LocatedCopy,
    Reader,
    binary,
    register_reader,
    sharegpt_names,
    split_files,
)
from ra_hmd.data.readers.tasks import HATE, Expected, choice_task, yes_no_task
from ra_hmd.data.readers.tree import Tree
from ra_hmd.data.rows import Row

HATE_TARGETS = ("undirected", "individual", "community", "organization")
STANCES = ("neutral", "support", "oppose")
_COLUMNS = {"name", "hate", "target", "stance", "humour", "split", "text"}


@register_reader
class PrideMM(Reader):
    """Reader of PrideMM. Cells are read as text: a target `NA` and captions `None` and `null` are kept as such."""

    name = "pridemm"
    title = "PrideMM"
    licence = "none stated: ask the authors"
    owner = "the authors' repository (MemeCLIP on GitHub)"
    looked_for = "PrideMM.csv, or RGCL's gt/PrideMM/{train,val,test}.jsonl"
    tasks = (
        HATE,
        choice_task("target", HATE_TARGETS, "Whom does its hate target?"),
        choice_task("stance", STANCES, "What stance does it take on LGBTQ+ people?"),
        yes_no_task("humour", "humorous"),
    )
    expected: Mapping[str, Mapping[str, Expected]] = {
        "official": {
            "train": Expected(
                4328,
                {
                    "hate": (2208, 2120),
                    "target": (666, 219, 986, 249),
                    "stance": (1252, 1645, 1431),
                    "humour": (1385, 2943),
                },
            ),
            "val": Expected(
                228, {"hate": (113, 115), "target": (37, 11, 56, 11), "stance": (66, 82, 80), "humour": (67, 161)}
            ),
            "test": Expected(
                507, {"hate": (260, 247), "target": (68, 19, 122, 38), "stance": (140, 182, 185), "humour": (190, 317)}
            ),
        },
    }
    sharegpt = sharegpt_names(
        "pridemm", "PrideMM/sharegpt_PrideMM_{}_instructblip.json", {"train": "", "val": "_dev", "test": "_test"}
    )

    def layouts(self, tree: Tree) -> list[LocatedCopy]:
        tables = [path for path in tree.files if path.suffix.lower() == ".csv" and tree.first(path).keys() >= _COLUMNS]
        found = [LocatedCopy("official table", (AnnotationFile(path),), "official") for path in tables]
        notes = ("this layout has the hate task alone",)
        files = split_files(tree, {"img": r"img[\\/]img_\d+\.png"})
        return found + [LocatedCopy("RA-HMD's jsonl files", parts, "official", notes=notes) for parts in files]

    def meme(self, row: Row, part: AnnotationFile, copy: LocatedCopy) -> Meme:
        values = row.values
        if "img" in values:
            image, split, hate = Path(values["img"]), part.split, values.get("label")
            extras = self.leftovers(values, "id", "img", "text", "label")
        else:
            image, split, hate = Path(values["name"]), values["split"], values["hate"]
            if split not in ("train", "val", "test"):
                raise ValueError(f"split is {split!r}; it should be train, val or test")
            extras = {
                "target": _index(values["target"], HATE_TARGETS, "target"),
                "stance": _index(values["stance"], STANCES, "stance"),
                "humour": binary(values["humour"], "humour"),
            }
        return Meme(
            id=self.meme_id(values.get("id", image.stem), split),
            image=image,
            text=values["text"],
            label=binary(hate, "hate"),
            split=split,
            extras=extras,
        )


def _index(value: str, names: tuple[str, ...], field: str) -> int | None:
    """Return the class index of a cell; None for `NA`, the target of a meme without hate.

    Copies that were saved by pandas have `nan` and `2.0`.

    Raises:
        ValueError: The cell is no class index.
    """
    if value.strip().casefold() in ("na", "nan", ""):
        return None
    number = float(value)
    if number not in range(len(names)):
        raise ValueError(f"{field} is {value!r}; it should be NA or 0 to {len(names) - 1}")
    return int(number)
