"""The test split opens only on purpose, and each opening leaves a line."""

import json
from multiprocessing import get_context

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import NO_STORE, Features
from ra_hmd.features.test_lock import (
    FINAL_RECORD,
    check_training,
    final_records,
    is_test_split,
    is_training_split,
    open_labels,
    split_name,
    store_digest,
)


def store(split=None, ids=("a", "b")):
    manifest = NO_STORE if split is None else NO_STORE.model_copy(update={"split": split})
    return Features(list(ids), np.arange(len(ids)) % 2, np.ones((len(ids), 3), np.float32), manifest=manifest)


@pytest.mark.parametrize(
    "name", ["test", "test_seen", "test_unseen", "Test-2", "b_test", "dev_test", "", "pool", "latest"]
)
def test_these_are_locked(name):
    assert is_test_split(name)


@pytest.mark.parametrize("name", ["train", "dev", "dev_seen", "val", "validation", "b_train", "Dev2"])
def test_these_are_open(name):
    assert not is_test_split(name)


@pytest.mark.parametrize("name", ["train", "a_train", "Training-2", "train_all"])
def test_these_are_training_splits(name):
    assert is_training_split(name)
    check_training({"somewhere": name}, "Clusters are fitted")


@pytest.mark.parametrize("name", ["dev", "test", "train_test", "pool", "", "trainer"])
def test_these_are_not(name):
    assert not is_training_split(name)
    with pytest.raises(UserError, match=rf"(?s)Clusters are fitted.*somewhere \(split '{name}'\)"):
        check_training({"else": "train", "somewhere": name}, "Clusters are fitted")


def test_the_manifest_s_split_counts_before_the_folder_s_name(tmp_path):
    assert split_name(store("test"), tmp_path / "dev") == "test"
    assert split_name(store("dev"), tmp_path / "test") == "dev"
    assert split_name(store(), tmp_path / "val") == "val"
    assert split_name(store(""), tmp_path / "val") == "val"


def test_without_final_nothing_is_opened_or_recorded(tmp_path):
    with pytest.raises(UserError, match=r"(?s)`--final`.*1\):\n.*somewhere \(split 'test_seen'\)"):
        open_labels({"somewhere": store("test_seen"), "d": store("dev")}, [tmp_path], final=False, command="c")
    assert not (tmp_path / FINAL_RECORD).exists()
    opened = open_labels({"d": store("dev")}, [tmp_path], final=True, command="c")
    assert opened == {"final": True, "test_sets": {}, "opened_before": {str(tmp_path): 0}}
    assert not (tmp_path / FINAL_RECORD).exists(), "dev alone is no opening"


def test_each_opening_is_one_line_beside_each_head(tmp_path):
    heads = [tmp_path / "one", tmp_path / "two"]
    for head in heads:
        head.mkdir()
    stores = {"t": store("test"), "d": store("dev")}
    first = open_labels(stores, heads, final=True, command="first")
    second = open_labels(stores, [heads[0]], final=True, command="second")
    assert first["test_sets"] == second["test_sets"] == {"t": "test"}
    assert second["opened_before"] == {str(heads[0]): 1}
    assert [record["command"] for record in final_records(heads[0])] == ["first", "second"]
    (line,) = (heads[1] / FINAL_RECORD).read_text().splitlines()
    (opened,) = json.loads(line)["test_sets"]
    assert opened == {"store": "t", "split": "test", "rows": 2, "sha256": store_digest(stores["t"])}


def test_a_bank_counts_where_it_says_test(tmp_path):
    assert not open_labels({"d": store("dev")}, [tmp_path], final=False, command="c", examples={"pool": store()})[
        "test_sets"
    ]
    with pytest.raises(UserError, match="b \\(split 'test'"):
        open_labels({"d": store("dev")}, [tmp_path], final=False, command="c", examples={"b": store("test")})
    opened = open_labels({"d": store("dev")}, [tmp_path], final=True, command="c", examples={"b": store("test")})
    assert opened["test_sets"] == {"b": "test"}
    assert [item["store"] for item in final_records(tmp_path)[0]["test_sets"]] == ["b"]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(("split", "refused"), [("test", True), ("holdout", True), ("dev", False), ("train", False)])
def test_nothing_is_chosen_by_test_data_or_by_what_may_be(tmp_path, split, refused, final):
    for given in (store(split), split):
        if refused:
            with pytest.raises(UserError, match=rf"s \(split '{split}'\)"):
                open_labels({"d": store("dev")}, [tmp_path], final=final, chosen_by={"s": given})
        else:
            assert open_labels(final=final, chosen_by={"s": given})["test_sets"] == {}
    assert not (tmp_path / FINAL_RECORD).exists()


def test_a_store_without_labels_has_nothing_to_lock(tmp_path):
    blank = store("test")
    blank = Features(blank.ids, np.full(2, -1), blank.hidden, manifest=blank.manifest)
    opened = open_labels({"t": blank}, [tmp_path], examples={"e": blank}, chosen_by={"c": blank})
    assert opened["test_sets"] == {}
    some = Features(blank.ids, np.array([-1, 1]), blank.hidden, manifest=blank.manifest)
    with pytest.raises(UserError, match="split 'test'"):
        open_labels({"t": some}, [tmp_path])


def test_the_digest_is_of_ids_labels_and_fingerprint():
    plain = store("test")
    others = [store("test", ("a", "c")), Features(["a", "b"], np.array([1, 0]), plain.hidden)]
    others.append(
        Features(
            plain.ids, plain.labels, plain.hidden, manifest=NO_STORE.model_copy(update={"fingerprint": {"model": "x"}})
        )
    )
    assert store_digest(plain) == store_digest(store("dev"))
    assert len({store_digest(item) for item in [plain, *others]}) == 4


def test_a_record_that_was_tampered_with_is_named(tmp_path):
    (tmp_path / FINAL_RECORD).write_text('{"command": "x"}\nnot json\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        open_labels({"t": store("test")}, [tmp_path], final=True, command="c")


def _open_often(head):
    for _ in range(50):
        open_labels({"t": store("test")}, [head], final=True, command="c" * 3000)


def test_processes_do_not_mix_their_lines(tmp_path):
    processes = [get_context("fork").Process(target=_open_often, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(final_records(tmp_path)) == 200
