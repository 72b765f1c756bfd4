"""What LLaMA-Factory trains on is extracted by its name and judged: one reader for all formats, with the same rows."""

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from llamafactory.train import tuner
from typer.testing import CliRunner

from llamafactory_ext.sft_classifier import records as records_module
from llamafactory_ext.sft_classifier import workflow
from llamafactory_ext.sft_classifier.records import load_records
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import Answers, PromptTemplate
from ra_hmd.data.resolve import resolve_memes
from ra_hmd.features.store import read_features
from ra_hmd.inference.batch_reader import read_batch
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.tokenization import InputSettings

pytestmark = pytest.mark.slow

ROWS = 6
OFFICIAL = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
Write = Callable[[Path, list[dict[str, Any]]], dict[str, Any]]


def embedded(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    place = record["images"][0]
    return {"bytes": (folder / place).read_bytes(), "path": Path(place).name}


def sharegpt_defaults(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    """`conversations`, `from`, `value`, `human`, `gpt`: the host's defaults need no `tags`."""
    names = {"user": "human", "assistant": "gpt"}
    rows = [
        {
            "id": one["id"],
            "images": one["images"],
            "conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in one["messages"]],
        }
        for one in records
    ]
    (folder / "data.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "images": "images"}
    return {"file_name": "data.json", "formatting": "sharegpt", "columns": columns}


def other_tags(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"user": "asker", "assistant": "answerer"}
    rows = [
        {
            "id": one["id"],
            "picture": one["images"][0],
            "chat": [{"who": names[turn["role"]], "said": turn["content"]} for turn in one["messages"]],
        }
        for one in records
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"messages": "chat", "images": "picture"}
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "asker", "assistant_tag": "answerer"}
    return {"file_name": "data.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}


def alpaca_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": one["id"], "instruction": one["messages"][0]["content"], "input": "",
             "output": one["messages"][1]["content"], "image": one["images"][0]} for one in records]  # fmt: skip


ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "images": "image"}


def alpaca_json(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / "data.json").write_text(json.dumps(alpaca_rows(records)))
    return {"file_name": "data.json", "columns": ALPACA}


def alpaca_csv(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    with (folder / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "instruction", "input", "output", "image"])
        writer.writeheader()
        writer.writerows(alpaca_rows(records))
    return {"file_name": "data.csv", "columns": ALPACA}


def parts_of_a_folder(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / "parts").mkdir()
    for number, part in enumerate((records[:2], records[2:])):
        (folder / "parts" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    columns = {"messages": "messages", "images": "images"}
    return {"file_name": "parts", "formatting": "sharegpt", "columns": columns, "tags": OFFICIAL}


def parquet_paths(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [one | {"image": one["images"][0]} for one in records]
    pq.write_table(pa.Table.from_pylist([{k: v for k, v in row.items() if k != "images"} for row in rows]),
                   folder / "data.parquet")  # fmt: skip
    columns = {"messages": "messages", "images": "image"}
    return {"file_name": "data.parquet", "formatting": "sharegpt", "columns": columns, "tags": OFFICIAL}


def parquet_bytes(folder: Path, records: list[dict[str, Any]], *, typed: bool = False, named: bool = True) -> Any:
    """Pictures within the rows, with and without the type that `datasets` gives them."""
    rows = [one | {"images": [embedded(one, folder)]} for one in records]
    if not named:
        rows = [{key: value for key, value in row.items() if key != "id"} for row in rows]
    if typed:
        made = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
        made.to_parquet(folder / "data.parquet")
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    columns = {"messages": "messages", "images": "images"}
    return {"file_name": "data.parquet", "formatting": "sharegpt", "columns": columns, "tags": OFFICIAL}


def parquet_hub(folder: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    return parquet_bytes(folder, records, typed=True)


FORMATS: list[Write] = [sharegpt_defaults, other_tags, alpaca_json, alpaca_csv, parts_of_a_folder, parquet_paths,
                        parquet_bytes, parquet_hub]  # fmt: skip


@pytest.fixture
def data(memes: Path, tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A `dataset_dir` with the pictures, and the first records in the official form."""
    folder = tmp_path / "data"
    shutil.copytree(memes, folder)
    return folder, json.loads((folder / "confounders_a.json").read_text())[:ROWS]


def register(folder: Path, entry: dict[str, Any]) -> None:
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry}))


def mine(folder: Path) -> dict[str, Any]:
    """Keys of Stage 1 to train on what is registered."""
    return {"dataset": "mine", "eval_dataset": None, "dataset_dir": str(folder)}


def extracted(folder: Path) -> list[Meme]:
    return resolve_memes("mine", "train", PromptTemplate(), Answers(), folder)


class _Loaded(Exception):
    """Ends a run once its rows are there."""


def trained(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, InputSettings]:
    """The rows that Stage 1 would train on, and its input settings."""
    found: dict[str, Any] = {}

    def load(*arguments: Any, **named: Any) -> None:
        found["rows"] = load_records(*arguments, **named)["train_dataset"]
        found["settings"] = next(one for one in (*arguments, *named.values()) if isinstance(one, InputSettings))
        raise _Loaded

    monkeypatch.setattr(records_module, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(workflow, "load_records", load)
    with pytest.raises(_Loaded):
        tuner.run_exp(config, callbacks=[])
    return found["rows"], found["settings"]


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_training_extraction_and_prediction_read_the_same_rows(
    data: tuple[Path, list[dict[str, Any]]],
    write: Write,
    stage1_config: Callable[..., dict[str, Any]],
    tiny: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, records = data
    official = read_memes(folder / "confounders_a.json", media_dir=folder)[:ROWS]
    entry = write(folder, records)
    register(folder, entry)
    memes = extracted(folder)
    assert [(meme.id, meme.text, meme.label) for meme in memes] == [(m.id, m.text, m.label) for m in official]
    assert [meme.image.read_bytes() for meme in memes] == [meme.image.read_bytes() for meme in official]

    rows, settings = trained(stage1_config(tmp_path / "out", **mine(folder)), monkeypatch, tmp_path)
    assert sorted(rows["sample_id"]) == sorted(meme.id for meme in memes)
    encoder, _ = load_encoder(str(tiny("qwen2_vl")), settings)
    by_id = {meme.id: meme for meme in memes}
    for row in rows:
        meme = by_id[row["sample_id"]]
        prompt = encoder.encode(meme.text, load_image(meme.image)).ids
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["class_label"] == meme.label
        assert Path(row["images"][0]).read_bytes() == meme.image.read_bytes()

    if write in (other_tags, parts_of_a_folder):  # only their entry says what the columns are; a folder is pictures
        return
    asked = [one.meme for one in read_batch(folder / entry["file_name"], folder)]
    assert [(query.id, query.text) for query in asked if query] == [(meme.id, meme.text) for meme in memes]
    assert [query.image.read_bytes() for query in asked] == [meme.image.read_bytes() for meme in memes]


def test_embedded_pictures_without_ids_have_one_name_in_training_and_extraction(
    data: tuple[Path, list[dict[str, Any]]],
    stage1_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    folder, records = data
    register(folder, parquet_bytes(folder, records, named=False))
    rows, _ = trained(stage1_config(tmp_path / "out", **mine(folder)), monkeypatch, tmp_path)
    names = {Path(record["images"][0]).name for record in records}
    assert {meme.id for meme in extracted(folder)} == set(rows["sample_id"]) == names


def test_a_run_on_embedded_pictures_is_extracted_and_predicts(
    data: tuple[Path, list[dict[str, Any]]],
    stage1_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(records_module, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, records = data
    register(folder, parquet_hub(folder, records))
    tuner.run_exp(stage1_config(tmp_path / "run", max_steps=1, **mine(folder)), callbacks=[])
    done = partial(CliRunner().invoke, app)
    said = done(["extract", "--checkpoint", f"{tmp_path}/run", "--data", "mine", "--split", "train", "--dataset-dir",
                 str(folder), "--output", f"{tmp_path}/store"])  # fmt: skip
    assert said.exit_code == 0, said.output
    features = read_features(tmp_path / "store")
    assert features.ids == [record["id"] for record in records]
    judged = done(["predict", "--checkpoint", f"{tmp_path}/run", "--input", f"{folder}/data.parquet", "--output",
                   f"{tmp_path}/verdicts.jsonl"])  # fmt: skip
    assert judged.exit_code == 0, judged.output
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == features.ids
    for line, score in zip(lines, features.lmh_score[:, 0], strict=True):
        assert line["scores"]["lmh"] == pytest.approx(float(score), abs=1e-5)


def test_tags_that_do_not_fit_are_told(data: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, records = data
    entry = other_tags(folder, records)
    register(folder, entry | {"tags": entry["tags"] | {"user_tag": "human"}})
    with pytest.raises(UserError, match="messages are of 'asker' and 'answerer', needed are 'human' and 'answerer'"):
        extracted(folder)
    register(folder, entry | {"columns": {"messages": "chat"}})
    with pytest.raises(UserError, match="`columns` name no `images`"):
        extracted(folder)


def test_names_composed_otherwise_on_disk_are_found(
    data: tuple[Path, list[dict[str, Any]]],
    stage1_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A table from Linux or Windows has é as one character, the disk of a Mac as two."""
    folder, records = data
    for record, form in zip(records, ("NFC", "NFD") * 3, strict=True):
        other = {"NFC": "NFD", "NFD": "NFC"}[form]
        source = folder / record["images"][0]
        name = f"caf\u00e9 {source.name}"
        shutil.copy(source, source.with_name(unicodedata.normalize(other, name)))
        record["images"] = [str(Path(record["images"][0]).with_name(unicodedata.normalize(form, name)))]
    register(folder, parts_of_a_folder(folder, records))
    memes = extracted(folder)
    assert all(meme.image.is_file() for meme in memes)
    rows, _ = trained(stage1_config(tmp_path / "out", **mine(folder)), monkeypatch, tmp_path)
    assert sorted(images[0] for images in rows["images"]) == sorted(str(meme.image) for meme in memes)


@pytest.mark.parametrize(("mark", "name"), [(b"\xef\xbb\xbf", "UTF-8"), (b"\xff\xfe", "UTF-16")])
def test_a_byte_order_mark_is_called_by_its_name(
    data: tuple[Path, list[dict[str, Any]]],
    stage1_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mark: bytes,
    name: str,
) -> None:
    folder, records = data
    register(folder, alpaca_json(folder, records))
    path = folder / "data.json"
    path.write_bytes(mark + path.read_bytes())
    with pytest.raises(UserError, match=rf"data\.json begins with a {name} byte order mark"):
        trained(stage1_config(tmp_path / "out", **mine(folder)), monkeypatch, tmp_path)
    if name == "UTF-8":
        assert len(extracted(folder)) == ROWS
