"""K-shot training: only the listed memes teach and vote."""

import numpy as np
import pytest
from json_files import read_json

from ra_hmd.core.artifacts import write_json
from ra_hmd.core.errors import UserError
from ra_hmd.evaluation.metrics.classification import auroc
from ra_hmd.features.store import read_features
from ra_hmd.models.head import HEAD_WEIGHTS, load_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.training.classification import train_head
from ra_hmd.training.inputs import training_rows
from stage2.trainer import run_stage2


@pytest.fixture
def lists(encoded):
    """Lists of 8 and 16 per class with three seeds, as `ra-hmd data k-shot` writes them."""
    store = read_features(encoded.folder / "train")
    entries = []
    for shots in (8, 16):
        for seed in range(3):
            rng = np.random.default_rng(seed)
            ids = [store.ids[row] for c in (0, 1) for row in rng.permutation(np.flatnonzero(store.labels == c))[:shots]]
            entries.append({"shots": shots, "seed": seed, "ids": ids})
    path = encoded.folder / "k_shot.json"
    write_json(path, {"kind": "k_shot", "dataset": "mami", "split": "train", "lists": entries})
    return path


def change(path, **content):
    """The list file with other content, beside it."""
    other = path.with_name("other.json")
    write_json(other, read_json(path) | content)
    return other


def test_a_run_sees_the_listed_memes_and_no_other(encoded, lists):
    """The same head as from a store that holds nothing else."""
    few = encoded.head(k_shot=lists, shots=8, shot_seed=2, epochs=3)
    result = train_head(few)
    ids = next(one["ids"] for one in read_json(lists).lists if (one["shots"], one["seed"]) == (8, 2))
    train = read_features(few.train)
    chosen = train.select(np.array([row for row, name in enumerate(train.ids) if name in ids]))
    assert training_rows(few, train).ids == chosen.ids
    alone = encoded.head(train=encoded.store("alone", chosen), epochs=3, output_dir=encoded.folder / "alone_out")
    assert train_head(alone)["dev"] == result["dev"]
    one, other = (args.output_dir / HEAD_WEIGHTS for args in (few, alone))
    assert one.read_bytes() == other.read_bytes()
    head, dev = load_head(few.output_dir), read_features(few.dev)
    bank = Embeddings.of(chosen, head)
    vote = Voting().vote(bank.nearest(Embeddings.of(dev, head), 20), bank.labels)
    assert result["dev"]["dev_rkc_auroc"] == pytest.approx(auroc(vote.scores[:, 0], dev.labels), abs=1e-6)
    assert read_json(few.output_dir / "ra_hmd.json").features.train.rows == 16


def test_each_seed_takes_its_own_list_and_longer_files_change_nothing(encoded, lists):
    args = encoded.stage2(k_shot=lists, shots=8, shot_seed=1, seeds=2, epochs=2)
    result = run_stage2(args)
    for number, seed in enumerate((1, 2)):
        manifest = read_json(args.output_dir / f"seed-{seed}" / "ra_hmd.json")
        assert (manifest.arguments.shot_seed, manifest.seed) == (1 + number, seed)
        assert manifest.features.train.rows == 16
    stamps = [(args.output_dir / f"seed-{seed}" / HEAD_WEIGHTS).stat().st_mtime_ns for seed in (1, 2)]
    content = read_json(lists)
    write_json(lists, content | {"lists": [*content.lists, {"shots": 32, "seed": 0, "ids": ["train1"]}]})
    assert run_stage2(args) == result
    assert stamps == [(args.output_dir / f"seed-{seed}" / HEAD_WEIGHTS).stat().st_mtime_ns for seed in (1, 2)]
    content.lists[1]["ids"] = content.lists[1]["ids"][1:]  # 8 shots, seed 1
    write_json(lists, content)
    run_stage2(args)
    again = [(args.output_dir / f"seed-{seed}" / HEAD_WEIGHTS).stat().st_mtime_ns for seed in (1, 2)]
    assert again[0] != stamps[0], "another list is another run"
    assert again[1] == stamps[1]


def test_lists_that_do_not_fit(encoded, lists, features):
    def refused(message, **changes):
        with pytest.raises(UserError, match=message):
            train_head(encoded.head(**{"k_shot": lists, "shots": 8} | changes))

    refused(r"8-shot lists of seeds \[0, 1, 2\], not of 3", seeds=2, shot_seed=2)
    refused(r"lists of \[8, 16\] shots, not of \[4\]", shots=4)
    refused("were drawn from split 'val', examples come from 'train'", k_shot=change(lists, split="val"))
    other = change(lists, lists=[{"shots": 8, "seed": 0, "ids": ["train0", "nobody"]}])
    refused(r"names 1 memes that .*train lacks, for example \['nobody'\]", k_shot=other)
    one_class = [name for name, label in zip(*(getattr(read_features(encoded.folder / "train"), key) for key in
                 ("ids", "labels")), strict=True) if label == 1][:8]  # fmt: skip
    refused("8 shots, seed 0, has memes of class 1 only; training needs several",
            k_shot=change(lists, lists=[{"shots": 8, "seed": 0, "ids": one_class}]))  # fmt: skip
    store = features(400, 0, "train")
    named = encoded.store("named", store, split="x", source={"dataset": "pridemm", "split": "train"})
    refused("were drawn from mami, and .*named holds pridemm", train=named)
    refused("is of kind .features., not .k_shot.", k_shot=change(lists, kind="features"))
    assert not (encoded.folder / "out").exists()


def test_settings_of_lists_that_contradict_each_other(encoded):
    with pytest.raises(UserError, match="`k_shot`.*`shots`"):
        encoded.head(k_shot="lists.json")
    with pytest.raises(UserError, match=r"(?s)`shots` is set, but there is no `k_shot`.*`shot_seed` is set"):
        encoded.head(shots=8, shot_seed=1)
    with pytest.raises(UserError, match="`shots` is 0, it must be at least 1"):
        encoded.head(k_shot="lists.json", shots=0)
