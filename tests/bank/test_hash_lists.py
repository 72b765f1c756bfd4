"""Lists of hashes in the forms of ThreatExchange's tools."""

import csv
import json

import pytest
from copies import picture, rows_of_memes
from small_banks import SAID, bank_of, points
from typer.testing import CliRunner

from ra_hmd.bank.hash_lists import COLUMNS, export_hashes, read_hash_list, read_signals
from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem

pytest.importorskip("pdqhash")
ONE, OTHER = "f8f8f0cee0f4a84f06370a22038f63f0b36e2ed596621e1d33e6b39c4e9c9b22", "0f" * 32
HEADER = ",".join(COLUMNS)


def run(*words):
    return CliRunner().invoke(app, ["bank", *map(str, words)])


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_bank_goes_through_a_list_and_back(tmp_path):
    rows = rows_of_memes([("a, “1” b", picture(0), "a cat", 1), ("c", picture(1), "", 0)])
    with bank_of(tmp_path / "bank") as bank:
        bank.add(rows, points(2), **SAID)
        export_hashes(bank, tmp_path / "list.csv")
    done = run("export-hashes", tmp_path / "bank", tmp_path / "again.csv")
    assert done.stdout.strip().endswith("again.csv: 2 hashes; 60 rows have none")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "list.csv").read_bytes()
    assert [(row["signal_type"], row["category"]) for row in lines_of(tmp_path / "list.csv")] == [
        ("pdq", "POSITIVE_CLASS"),
        ("pdq", "NEGATIVE_CLASS"),
    ]
    done = run("import-hashes", tmp_path / "list.csv", tmp_path / "imported.csv")
    assert done.exit_code == 0, done.output
    for name in ("list.csv", "imported.csv"):
        read = read_hash_list(tmp_path / name, Problem())
        assert (read.ids, read.labels.tolist()) == (rows.ids, [1, 0])
        assert (read.pdqs, read.caption_digests) == (rows.pdqs, rows.caption_digests)
        assert not read.decided.any()


def test_labels_of_several_classes(tmp_path):
    (tmp_path / "list.csv").write_text(f"{HEADER}\npdq,{ONE},x,POSITIVE_CLASS,ra-hmd-label:\n")
    done = run("import-hashes", tmp_path / "list.csv", tmp_path / "labelled.csv", "--label", "0,1,0")
    assert done.exit_code == 0, done.output
    several = Problem("multi_label", 3)
    assert read_hash_list(tmp_path / "labelled.csv", several).labels.tolist() == [[0, 1, 0]]
    with pytest.raises(UserError, match=r"without a label of 4 classes.*\n.*labelled.csv, line 2"):
        read_hash_list(tmp_path / "labelled.csv", Problem("multi_label", 4))


FORMS = {
    "list.csv": f"{HEADER}\npdq,{ONE},x,POSITIVE_CLASS,week12 hate\nvideo_md5,{'0' * 32},x,POSITIVE_CLASS,\n"
    f"pdq,{OTHER},x,NEGATIVE_CLASS,\n",
    "list.jsonl": "".join(
        json.dumps(line) + "\n"
        for line in (
            {"id": "1", "raw_indicator": ONE.upper(), "type": "HASH_PDQ", "status": "MALICIOUS", "tags": ["hate"]},
            {"id": "2", "raw_indicator": "0" * 32, "type": "HASH_MD5", "status": "MALICIOUS"},
            {"id": "3", "indicator": OTHER, "type": "HASH_PDQ", "tags": {"data": [{"text": "benign one"}]}},
        )
    ),
    "list.txt": f"pdq {ONE}\nvideo_md5 {'0' * 32}\n{OTHER}\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_the_forms_that_others_write(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name])
    signals, others = read_signals(tmp_path / name)
    assert ([signal.pdq for signal in signals], others) == ([ONE, OTHER], 1)
    done = run("import-hashes", tmp_path / name, tmp_path / "labelled.csv", "--tag", "hate=1", "--label", "0")
    assert "2 hashes; 1 signals of other types are left out" in done.stdout
    read = read_hash_list(tmp_path / "labelled.csv", Problem())
    assert read.labels.tolist() == ([1, 0] if name != "list.txt" else [0, 0])
    assert read.ids == [ONE, OTHER]
    assert set(read.caption_digests) == {""}, "so none of these rows can decide"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("list.csv", f"{HEADER}\npdq,{ONE[:-1]},x,,\n", "list.csv, line 2: .*is not 64 hexadecimal digits"),
        ("list.csv", f"{HEADER}\npdq,{ONE},x,,\npdq,zz{ONE[2:]},x,,\n", "list.csv, line 3"),
        ("list.csv", f"{HEADER}\n{ONE}\n", "list.csv, line 2: 1 columns, the header has 5"),
        ("list.csv", f"hash\n{ONE}\n", "list.csv, line 2: no signal_type and signal_str"),
        ("list.jsonl", '{"type": "HASH_PDQ"\n', "list.jsonl, line 1"),
        ("list.jsonl", "[]\n", "list.jsonl, line 1: a list stands where an object"),
        ("list.txt", f"pdq {ONE}\n\npdq 12\n", "list.txt, line 3"),
        ("list.txt", "\udcff", "is not UTF-8"),
        ("list.pdf", "", "list.pdf"),
    ],
)
def test_a_malformed_list_is_refused_with_its_lines(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=said):
        read_signals(tmp_path / name)


def test_hashes_without_one_label_are_refused(tmp_path):
    source, output = tmp_path / "list.csv", tmp_path / "labelled.csv"
    source.write_text(f"{HEADER}\npdq,{ONE},x,,hate benign\npdq,{OTHER},x,,\n")
    done = run("import-hashes", source, output, "--tag", "hate=1", "--tag", "benign=0")
    assert done.exit_code == 2
    assert "line 2: several labels (tags: hate, benign)" in done.stderr
    assert "line 3: no label (tags: none)" in done.stderr
    assert not output.exists()
    with pytest.raises(UserError, match=r"import-hashes.*\n.*list.csv, line 2"):
        read_hash_list(source, Problem())
    assert "write NAME=LABEL" in run("import-hashes", source, output, "--tag", "1").stderr
    assert "write a class index" in run("import-hashes", source, output, "--label", "hate").stderr
    assert "does not exist" in run("import-hashes", tmp_path / "none.csv", output).stderr
    assert "end its name in .csv" in run("import-hashes", source, tmp_path / "x.json", "--label", "1").stderr


def test_equal_hashes_are_imported_once_and_labels_that_are_none_are_refused(tmp_path):
    source, output = tmp_path / "list.txt", tmp_path / "labelled.csv"
    source.write_text(f"pdq {ONE}\npdq {ONE}\n")
    assert "1 hashes" in run("import-hashes", source, output, "--label", "7").stdout
    with pytest.raises(UserError, match="7"):
        read_hash_list(output, Problem())


def test_rows_that_were_removed_are_not_exported(tmp_path):
    rows = rows_of_memes([("a", picture(0), "a cat", 1), ("b", picture(1), "b", 0)])
    with bank_of(tmp_path / "bank") as bank:
        bank.add(rows, points(2), **SAID)
        bank.remove(["a"], **SAID)
        export_hashes(bank, tmp_path / "list.csv")
    assert read_hash_list(tmp_path / "list.csv", Problem()).ids == ["b"]
