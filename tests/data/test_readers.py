"""The contract of every reader: what each does with a copy of its data set, whichever data set it is.

A new reader joins with a copy in `data_copies.py`, a row in `WHOLE` and its facts in `official_facts.json`. What is
special about one data set is tested in the file with its name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from data_copies import COPIES, IMPORT_OPTIONS, reader_options
from meme_files import Imported, imported, jsonl, picture
from PIL import Image
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data import import_dataset, readers
from ra_hmd.data.checks.check import check_data
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.meme_dataset import open_data
from ra_hmd.data.readers import READERS, get_reader
from ra_hmd.data.readers.base import Reader, register_reader

FACTS = json.loads((Path(__file__).parent / "official_facts.json").read_text(encoding="utf-8"))
IMAGE_SUFFIXES = (".png", ".jpg", ".webp")
WORDS = ("None", "null", "NA", "nan")
PUBLIC = [name for name in COPIES if name != "generic"]
DEV = ("val", "dev", "dev_seen", "dev_unseen")
RELEASE_IDS = {"hateful_memes": "{n:0>5}", "mami": "{s}_{n}", "multioff": "{n}.png"}
NO, YES = "No. It is not a hateful meme.", "Yes. It is a hateful meme."


@dataclass(frozen=True)
class Whole:
    """What an import of a copy gives: layout, variant, split → (ids, labels) and notes."""

    layout: str
    variant: str
    splits: dict[str, tuple[list[str], list[int | None]]]
    notes: tuple[str, ...] = ()


def fours(pattern: str, *splits: str, labels: tuple[int | None, ...] = (1, 0, 1, 0)) -> dict[str, Any]:
    """Four memes in each split, numbered from 1, 101 and 201."""
    starts = range(1, 1000, 100)
    return {
        split: ([pattern.format(n) for n in range(start, start + 4)], [*labels])
        for start, split in zip(starts, splits, strict=False)
    }


def tweets(*numbers: int) -> tuple[list[str], list[int | None]]:
    return [str(1_110_000_000_000_000_000 + number) for number in numbers], [number % 2 for number in numbers]


THREE = ("train", "val", "test")
WHOLE = {
    "hateful_memes": Whole(
        "phase 2, integer ids", "phase 2", fours("{:05d}", "train", "dev_seen", "test_seen"),
    ),
    "harm_c": Whole("V1 annotations", "V1", fours("covid_memes_{}", *THREE, labels=(0, 1, 0, 1))),
    "harm_p": Whole("V1 annotations", "V1", fours("memes_{}", *THREE, labels=(0, 1, 0, 1))),
    "mami": Whole("official tables", "official",
                  fours("train_{}", "train") | {"test": (["test_15001", "test_15002"], [1, 0])}),
    "multioff": Whole("official tables", "official", fours("x{}.jpg.png", *THREE)),
    "pridemm": Whole("official table", "official", {
        split: ([f"img_{n}" for n in range(start, start + 4)], [1, 0, 1, 0])
        for start, split in zip((1, 5, 9), THREE, strict=True)
    }),
    "memotion": Whole("official tables", "official", {
        "train": ([f"train_image_{n}.jpg" for n in range(12)], [0, 1] * 6),
        "test": (["test_t_0.webp", "test_t_1.webp"], [0, 1]),
    }, ("no official dev split: cut one from train with --val-fraction",)),
    "mmhs150k": Whole("official files", "official",
                      {"train": tweets(*range(6)), "val": tweets(6, 7, 8), "test": tweets(9, 10, 11)}),
    "propaganda": Whole("official annotations", "official", fours("{}_batch_2", *THREE, labels=(None,) * 4)),
    "generic": Whole("files with columns", "", {
        split: ([f"m{n}" for n in range(start, start + 4)], [0, 1, 0, 1])
        for start, split in zip((0, 4, 8), ("train", "dev", "test"), strict=True)
    }),
}  # fmt: skip


def run(name: str, root: Path, output: Path, options: ImportOptions | None = None, **folders: Path) -> Imported:
    return imported(name, root, output, options=options, **reader_options(name), **folders)


def rows(data: Imported) -> list[dict[str, Any]]:
    return [row for split in sorted(data.rows) for row in data.rows[split]]


def annotations(root: Path) -> list[Path]:
    files = (path for path in sorted(root.rglob("*")) if path.suffix in (".csv", ".jsonl", ".txt", ".json"))
    return [path for path in files if path.is_file()]


def first_file(root: Path, data: Imported) -> Path:
    """The file with the first rows of train."""
    return Path(next(path for path in data.manifest["files"] if Path(path).suffix != ".txt"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of each data set; nobody changes them."""
    folder = tmp_path_factory.mktemp("copies")
    return {name: write(folder / name) for name, write in COPIES.items()}


@pytest.fixture(scope="module")
def imports(copies: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Imported]:
    """The import of such a copy, made once."""
    folder = tmp_path_factory.mktemp("imports")
    made: dict[str, Imported] = {}

    def get(name: str) -> Imported:
        if name not in made:
            made[name] = run(name, copies[name], folder / name)
        return made[name]

    return get


@pytest.fixture(params=list(COPIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def whole(name: str, imports: Callable[[str], Imported]) -> Imported:
    return imports(name)


@pytest.fixture
def root(name: str, tmp_path: Path) -> Path:
    """A copy of one's own, to change."""
    return COPIES[name](tmp_path / "copy")


def test_a_whole_copy_is_read_in_full(name: str, whole: Imported, copies: dict[str, Path]) -> None:
    case, manifest = WHOLE[name], whole.manifest
    assert {split: (whole.column(split, "id"), whole.column(split, "label")) for split in whole.rows} == case.splits
    assert (manifest["dataset"], manifest["layout"], manifest["variant"]) == (name, case.layout, case.variant)
    assert manifest["splits"] == {split: len(ids) for split, (ids, _) in sorted(case.splits.items())}
    assert tuple(manifest["notes"]) == case.notes
    assert (whole.rejected, manifest["rejected"], manifest["reasons"]) == ([], {}, {})
    for row in rows(whole):
        path = Path(row["image"])
        assert path.is_file()
        assert path.is_relative_to(copies[name])
        assert row["text"] == " ".join(row["text"].split())
    assert len({row["image"] for row in rows(whole)}) == len(rows(whole))


def test_an_import_is_lines_and_a_table_for_each_split(whole: Imported) -> None:
    fields = ["id", "image", "text", "raw_text", "label", "split", "extras"]
    for split, lines in whole.rows.items():
        assert all(list(row) == fields and row["split"] == split for row in lines)
        columns = pq.read_table(whole.folder / f"{split}.parquet").to_pylist()
        assert [row | {"extras": json.loads(row["extras"])} for row in columns] == lines
    files = [f"{split}.{kind}" for split in whole.rows for kind in ("jsonl", "parquet")]
    assert {path.name for path in whole.folder.iterdir()} == {"dataset.json", "rejected.jsonl", *files}


def test_the_command_tells_what_it_read(name: str, root: Path, whole: Imported, tmp_path: Path) -> None:
    command = ["data", "import", name, str(root), "--output", str(tmp_path / "out"), "--workers", "1"]
    done = CliRunner().invoke(app, [*command, *IMPORT_OPTIONS.get(name, [])])
    assert done.exit_code == 0, done.output
    assert [row["id"] for row in rows(Imported(tmp_path / "out"))] == [row["id"] for row in rows(whole)]
    assert all(f"  {split}: {len(lines)} memes" in done.stdout for split, lines in whole.rows.items())


def test_ids_are_unique_within_a_split(whole: Imported) -> None:
    assert Counter((row["split"], row["id"]) for row in rows(whole)).most_common(1)[0][1] == 1


def test_every_task_gives_a_class_or_none(name: str, whole: Imported) -> None:
    data = open_data(whole.folder)
    for task in data.reader.tasks:
        for split in data.splits:
            for meme in data.memes(split):
                value = data.value(task, meme)
                indices = value if isinstance(value, list) else [] if value is None else [value]
                assert isinstance(value, list) == (task.multi_label and value is not None)
                assert all(index in range(len(task.classes)) for index in indices)
                if task == data.reader.tasks[0] and not task.multi_label:
                    assert value == meme.label


def test_an_unknown_task_is_refused_with_those_that_there_are(whole: Imported) -> None:
    data = open_data(whole.folder)
    with pytest.raises(UserError) as caught:
        data.task("weather")
    assert all(word in str(caught.value) for word in ("'weather'", *(task.name for task in data.reader.tasks)))


def test_a_check_finds_no_fault(name: str, root: Path, tmp_path: Path) -> None:
    run(name, root, tmp_path / "out")
    found = {finding["kind"]: finding["severity"] for finding in check_data(tmp_path / "out").findings}
    assert "error" not in found.values()
    assert {kind for kind, severity in found.items() if severity == "warning"} <= {"rows", "classes"}
    assert ("rows" in found) == (name != "generic")


def test_the_same_import_is_left_alone(name: str, root: Path, tmp_path: Path) -> None:
    first = run(name, root, tmp_path / "out").manifest
    assert run(name, root, tmp_path / "out").manifest == first
    with pytest.raises(UserError, match="holds another import"):
        run(name, root, tmp_path / "out", ImportOptions("raw"))


@pytest.mark.parametrize("moment", ["_merge", "write_manifest"])
def test_a_stopped_import_continues(
    name: str, moment: str, whole: Imported, copies: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., object] = getattr(import_dataset, moment)

    def stop(*arguments: Any) -> object:
        if moment == "_merge":
            original(*arguments)
            raise KeyboardInterrupt
        if Path(arguments[0]).name == "dataset.json":
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(import_dataset, moment, stop)
    with pytest.raises(KeyboardInterrupt):
        run(name, copies[name], tmp_path / "out")
    monkeypatch.undo()
    assert run(name, copies[name], tmp_path / "out").rows == whole.rows


# Captions


def test_words_for_nothing_stay_captions(name: str, tmp_path: Path) -> None:
    data = run(name, COPIES[name](tmp_path / "copy", lambda n: WORDS[n % 4]), tmp_path / "out")
    assert {row["text"] for row in rows(data)} == {row["raw_text"] for row in rows(data)} == {*WORDS}
    assert data.rejected == []


def test_captions_keep_every_character(name: str, tmp_path: Path) -> None:
    captions = ["coffee , " * 1100 + "no more", 'Cats , dogs , and "ducks"; a "word"', "It 's `` déjà '' CAFÉ ☕ தேநீர்",
                "the cafÃ© ... donâ€™t  panic !"]  # fmt: skip
    asked: list[str] = []

    def text(number: int) -> str:
        asked.append(captions[number % 4])
        return asked[-1]

    data = run(name, COPIES[name](tmp_path / "copy", text), tmp_path / "out")
    assert Counter(row["text"] for row in rows(data)) == Counter(row["raw_text"] for row in rows(data))
    assert Counter(row["text"] for row in rows(data)) == Counter(asked)


@pytest.mark.parametrize(
    ("policy", "text"), [("single_line", "MONDAY AGAIN déjà"), ("strip", "MONDAY \nAGAIN\n\n déjà"), ("raw", None)]
)
def test_line_breaks_and_outer_blanks_under_each_policy(
    name: str, policy: Any, text: str | None, tmp_path: Path
) -> None:
    raw = "  MONDAY \nAGAIN\n\n déjà\n"
    data = run(name, COPIES[name](tmp_path / "copy", lambda _: raw), tmp_path / "out", ImportOptions(policy))
    # A table with CRLF at the end of its lines has it inside captions too.
    assert {row["text"].replace("\r\n", "\n") for row in rows(data)} == {raw if text is None else text}
    assert {row["raw_text"].replace("\r\n", "\n") for row in rows(data)} == {raw}
    assert data.rejected == []  # captions may repeat, also across splits


# Files


@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_byte_order_mark_line_ends_and_a_missing_last_one_change_nothing(
    name: str, end: str, mark: str, root: Path, tmp_path: Path
) -> None:
    before = run(name, root, tmp_path / "before")
    for path in annotations(root):
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
        path.write_bytes((mark + text.replace("\n", end)).encode())
    after = run(name, root, tmp_path / "after")
    assert (after.rows, after.rejected) == (before.rows, [])


def test_rows_that_come_again_are_rejected(name: str, root: Path, whole: Imported, tmp_path: Path) -> None:
    path = first_file(root, run(name, root, tmp_path / "before"))
    text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    lines = text.split("\n")
    again = f"{text[:-1]}, {text[1:]}" if path.suffix == ".json" else "\n".join([text, *lines[path.suffix == ".csv" :]])
    path.write_text(again)
    data = run(name, root, tmp_path / "out")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]
    assert {row["reason"] for row in data.rejected} == {"id came before in its split"}
    assert {row["id"] for row in data.rejected} >= {*whole.column("train", "id")}


def test_a_broken_row_is_rejected_with_its_place(name: str, root: Path, whole: Imported, tmp_path: Path) -> None:
    path = first_file(root, run(name, root, tmp_path / "before"))
    text = path.read_bytes().decode("utf-8-sig")
    path.write_text((text if text.endswith("\n") else text + "\n") + "{oops\n")
    if path.suffix == ".json":  # an array or object is read as one
        with pytest.raises(UserError, match="is not valid JSON"):
            run(name, root, tmp_path / "out")
        return
    data = run(name, root, tmp_path / "out")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]
    (rejected,) = data.rejected
    assert rejected["place"] == f"{path.name}, line {len(path.read_text().splitlines())}"
    assert rejected["reason"].startswith("not valid JSON" if path.suffix == ".jsonl" else "1 columns, the header has")


@pytest.mark.parametrize("spelling", ["relative", "link", "dots", "above"])
def test_the_root_may_be_spelled_otherwise(
    name: str, spelling: str, root: Path, whole: Imported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latest").symlink_to(root, target_is_directory=True)
    if spelling == "above":  # with a second name of the same folder
        (tmp_path / "above").mkdir()
        root.rename(tmp_path / "above" / "copy")
        (tmp_path / "above" / "latest").symlink_to(tmp_path / "above" / "copy", target_is_directory=True)
    path = {"relative": Path("copy"), "link": tmp_path / "latest", "dots": tmp_path / "copy" / ".." / "copy",
            "above": tmp_path / "above" / ("copy" if name == "generic" else "")}[spelling]  # fmt: skip
    data = run(name, path, tmp_path / "out")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]
    assert all(Path(row["image"]).is_absolute() and ".." not in row["image"] for row in rows(data))


@pytest.mark.parametrize("name", PUBLIC, indirect=True)
def test_two_copies_below_one_root_are_refused_by_name(name: str, tmp_path: Path) -> None:
    for place in ("one", "two"):
        COPIES[name](tmp_path / "in" / place)
    with pytest.raises(UserError, match="more than one|more than once") as caught:
        run(name, tmp_path / "in", tmp_path / "out")
    assert str(tmp_path / "in/one") in str(caught.value)
    assert str(tmp_path / "in/two") in str(caught.value)


@pytest.mark.parametrize("name", PUBLIC, indirect=True)
def test_another_data_set_is_not_taken(name: str, copies: dict[str, Path], tmp_path: Path) -> None:
    for other in PUBLIC:
        if other != name:
            with pytest.raises(UserError) as caught:
                get_reader(name).locate(copies[other])
            text = str(caught.value)
            assert text.startswith(f"No files of {READERS[name].title} below {copies[other]}.")
            assert READERS[name].looked_for in text
            assert annotations(copies[other])[0].name in text


def test_packed_files_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all.tar.gz").write_bytes(b"packed")
    with pytest.raises(UserError, match=r"Unpack all\.tar\.gz"):
        run(name, tmp_path / "in", tmp_path / "out")


# Images


def images(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.suffix in IMAGE_SUFFIXES)


def test_images_may_lie_elsewhere(name: str, root: Path, whole: Imported, tmp_path: Path) -> None:
    for path in [*images(root)]:
        target = tmp_path / "drive" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    with pytest.raises(UserError) as caught:
        run(name, root, tmp_path / "out")
    assert str(caught.value).startswith(f"No images of {READERS[name].title} below {root}")
    assert Path(whole.rows["train"][0]["image"]).name in str(caught.value)
    assert "--images" in str(caught.value)
    data = run(name, root, tmp_path / "out", images=tmp_path / "drive")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]
    assert all(Path(row["image"]).is_relative_to(tmp_path / "drive") for row in rows(data))


def test_missing_and_broken_images_are_rejected_and_counted(
    name: str, root: Path, whole: Imported, tmp_path: Path
) -> None:
    before = run(name, root, tmp_path / "before")
    gone, broken = (Path(row["image"]) for row in before.rows["train"][:2])
    gone.unlink()
    broken.write_text("no image")
    data = run(name, root, tmp_path / "out")
    kept = [row["id"] for row in rows(whole) if row["id"] not in whole.column("train", "id")[:2]]
    assert [row["id"] for row in rows(data)] == kept
    assert data.manifest["reasons"] == {"image missing": 1, "not an image": 1}
    assert data.manifest["rejected"] == {"train": 2}
    assert [(row["split"], row["id"], row["reason"]) for row in data.rejected] == [
        ("train", whole.column("train", "id")[0], f"image missing: {gone}"),
        ("train", whole.column("train", "id")[1], f"not an image: {broken}"),
    ]
    assert all(row["place"] for row in data.rejected)
    assert [note for note in data.manifest["notes"] if " 1 are not there" in note]


def test_images_are_opened_by_content(name: str, root: Path, whole: Imported, tmp_path: Path) -> None:
    for number, path in enumerate(images(root)):
        with Image.open(path) as image:
            image.save(path, format=("PNG", "JPEG", "WEBP")[number % 3])
    for number in range(6):  # files that no row names make no memes
        picture(next(images(root)).parent / f"extra{number}.png")
    data = run(name, root, tmp_path / "out")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]


# A dev split of one's own


def test_val_is_cut_from_train_only_where_there_is_no_dev_split(
    name: str, root: Path, whole: Imported, tmp_path: Path
) -> None:
    options = ImportOptions(val_fraction=0.5)
    if dev := [split for split in whole.rows if split in DEV]:
        with pytest.raises(UserError, match=f"--val-fraction: .* has a dev split of its own, '({'|'.join(dev)})'"):
            run(name, root, tmp_path / "out", options)
        return
    cut, again = (run(name, root, tmp_path / out, options) for out in ("out", "again"))
    assert cut.column("val", "id") == again.column("val", "id")
    assert sorted(cut.column("val", "id") + cut.column("train", "id")) == sorted(whole.column("train", "id"))
    assert cut.column("test", "id") == whole.column("test", "id")


# The files of the RA-HMD release


def release(name: str, root: Path, *, labels: bool = True) -> dict[str, Path]:
    """Its ShareGPT files of train, dev and test with two memes each, and their images; split → file."""
    files = {}
    for number, (split, (_, file)) in enumerate([*READERS[name].sharegpt.items()][:3]):
        folder = Path(file).parent.name
        records = []
        for label in (0, 1):
            image = f"./data/image/{folder}/All/{number}{label}.png"
            question = f'<image> This is an image with: "two\n"cats" {label}" written on it. Is it hateful?'
            messages = [{"content": question, "role": "user"}, {"content": (NO, YES)[label], "role": "assistant"}]
            record = {"id": Path(image).stem, "messages": messages, "images": [image]}
            records.append(record | {"label": label} if labels else record)
            picture(root / image)
        other = {"id": "x", "messages": [{"content": "?", "role": "user"}, {"content": "community", "role": "a"}]}
        files[split] = root / "data" / file
        files[split].parent.mkdir(parents=True, exist_ok=True)
        files[split].write_text(json.dumps(records, indent=4))
        choice = files[split].name.replace("_instructblip", "_target_choice")
        (files[split].parent / choice).write_text(json.dumps([other]))
    (root / "data" / "dataset_info.json").write_text("{}")
    return files


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("below", ["", "data"])
@pytest.mark.parametrize("name", PUBLIC, indirect=True)
def test_the_files_of_the_release_are_read(name: str, below: str, labels: bool, tmp_path: Path) -> None:
    splits = release(name, tmp_path / "in", labels=labels)
    data = run(name, tmp_path / "in" / below, tmp_path / "out")
    assert (data.manifest["layout"], data.manifest["variant"]) == ("RA-HMD ShareGPT files", "")
    assert {*data.rows} == {*splits}
    for number, split in enumerate(splits):
        folder = tmp_path / "in/data/image" / splits[split].parent.name / "All"
        assert data.column(split, "id") == [
            RELEASE_IDS.get(name, "{n}").format(n=f"{number}{i}", s=split) for i in "01"
        ]
        assert data.column(split, "image") == [str(folder / f"{number}{label}.png") for label in (0, 1)]
        assert data.column(split, "label") == [0, 1]
        assert data.column(split, "text") == ['two "cats" 0', 'two "cats" 1']
        assert data.column(split, "raw_text") == ['two\n"cats" 0', 'two\n"cats" 1']
        assert data.column(split, "extras") == [{}, {}]
    assert data.rejected == []


@pytest.mark.parametrize("name", PUBLIC, indirect=True)
def test_the_files_of_the_release_are_noted_beside_annotations(
    name: str, root: Path, whole: Imported, tmp_path: Path
) -> None:
    path = next(iter(release(name, root).values()))
    data = run(name, root, tmp_path / "out")
    assert [row["id"] for row in rows(data)] == [row["id"] for row in rows(whole)]
    assert f"also there and not read: RA-HMD ShareGPT files in {path.parent}" in data.manifest["notes"]


# Facts and the registry


def test_classes_counts_and_file_names_are_the_official_ones(name: str) -> None:
    reader, facts = READERS[name], FACTS[name]
    assert {task.name: [*task.classes] for task in reader.tasks if task.member_of is None} == facts["tasks"]
    assert [task.name for task in reader.tasks if task.multi_label] == facts["multi_label"]
    assert {split: [*pair] for split, pair in reader.sharegpt.items()} == facts["sharegpt"]
    expected = {
        variant: {
            split: {"rows": whole.rows} | {task: [*counts] for task, counts in whole.tasks.items()}
            for split, whole in splits.items()
        }
        for variant, splits in reader.expected.items()
    }
    assert expected == facts["expected"]


@pytest.mark.parametrize(
    ("name", "variant", "total"),
    [
        ("hateful_memes", "phase 2", 12140 + 400),
        ("harm_c", "V1", 3544),
        ("harm_p", "V1", 3470),
        ("multioff", "official", 743),
        ("pridemm", "official", 5063),
        ("mmhs150k", "official", 149_823),
    ],
)
def test_counts_add_up_to_the_published_totals(name: str, variant: str, total: int) -> None:
    assert sum(whole.rows for whole in READERS[name].expected[variant].values()) == total


def test_a_task_that_labels_every_row_counts_every_row(name: str) -> None:
    partial = {("pridemm", "target"), ("harm_p", "intensity")}  # rows without hate, and one of no grade
    for splits in READERS[name].expected.values():
        for whole in splits.values():
            for task in READERS[name].tasks:
                counts = whole.tasks.get(task.name)
                if counts is not None:
                    assert len(counts) == len(task.classes)
                    assert task.multi_label or (name, task.name) in partial or sum(counts) == whole.rows


def test_the_registry_has_every_module_and_a_copy_of_every_reader() -> None:
    modules = {path.stem for path in Path(readers.__file__).parent.glob("*.py")}
    assert {*READERS} == {*COPIES} == {*WHOLE} == {*FACTS}
    assert {*READERS} <= modules
    assert [*READERS][-1] == "generic"


NEW_READER = '''
"""Street signs: a data set that nobody has."""

from pathlib import Path

from ra_hmd.data.meme import Meme
from ra_hmd.data.readers.base import LocatedCopy, Reader, register_reader, split_files
from ra_hmd.data.readers.tasks import Expected, Task


@register_reader
class StreetSigns(Reader):
    name = "street_signs"
    title = "Street signs"
    licence = "none"
    owner = "nobody"
    looked_for = "train.jsonl with `sign`"
    tasks = (Task("round", ("square", "round")),)
    expected = {"first": {"train": Expected(2, {"round": (1, 1)})}}

    def layouts(self, tree):
        return [LocatedCopy("sign files", parts, "first") for parts in split_files(tree, {"sign": ".*"})]

    def meme(self, row, part, copy):
        values = row.values
        return Meme(values["id"], Path(values["sign"]), values["words"], values["round"], part.split)
'''


def test_a_data_set_is_added_by_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "street_signs.py").write_text(NEW_READER)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "package")])
    names = [module.name for module in readers.iter_modules(readers.__path__)]
    assert "street_signs" in names  # so the package imports it
    try:
        readers.import_module("ra_hmd.data.readers.street_signs")
        signs = [{"id": f"s{n}", "sign": f"{n}.png", "words": "stop", "round": n} for n in (0, 1)]
        jsonl(tmp_path / "in" / "train.jsonl", signs)
        for n in (0, 1):
            picture(tmp_path / "in" / f"{n}.png")
        command = ["data", "import", "street_signs", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
        done = CliRunner().invoke(app, [*command, "--workers", "1"])
        assert done.exit_code == 0, done.output
        assert Imported(tmp_path / "out").column("train", "label") == [0, 1]
        assert [one["severity"] for one in check_data(tmp_path / "out").findings] in ([], ["info"])
        assert "street_signs" in CliRunner(env={"COLUMNS": "300"}).invoke(app, ["data", "list"]).stdout
    finally:
        READERS.pop("street_signs", None)


@pytest.mark.parametrize("taken", ["mami", "Street Signs"])
def test_a_name_that_is_taken_or_none_is_refused(taken: str) -> None:
    class Another(Reader):
        name = taken

    with pytest.raises(ValueError, match=taken):
        register_reader(Another)
    assert READERS["mami"].__name__ == "Mami"
