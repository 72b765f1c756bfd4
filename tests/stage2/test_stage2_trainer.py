"""Stage 2 from stores to a refined head."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from json_files import read_json
from safetensors.torch import load_file
from torch import nn

import ra_hmd.training.trainer
import stage2.mining
from ra_hmd.core.artifacts import sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.evaluation.metrics.classification import auroc
from ra_hmd.features.store import Features, read_features
from ra_hmd.models.head import HEAD_WEIGHTS, INITIAL_HEAD, HeadConfig, MemeHead, load_head, save_head
from ra_hmd.retrieval.embeddings import Embeddings
from ra_hmd.retrieval.knn import Neighbours
from ra_hmd.retrieval.voting import Voting
from ra_hmd.training.trainer import clip_gradients, parameter_groups
from stage2.__main__ import main
from stage2.losses.settings import LOSSES
from stage2.mining import Mined
from stage2.trainer import Trainer, run_stage2


def dev_auroc(folder, train, dev):
    head = load_head(folder)
    train, dev = read_features(train), read_features(dev)
    bank = Embeddings.of(train, head)
    neighbours = bank.nearest(Embeddings.of(dev, head), 20)
    return auroc(Voting().vote(neighbours, bank.labels).scores[:, 0], dev.labels)


def save_fresh_head(folder, seed=3, **config):
    torch.manual_seed(seed)
    head = MemeHead(HeadConfig(**{"input_dim": 16, "proj_dim": 32} | config))
    save_head(folder, head.config, head.state_dict())
    return head


@pytest.mark.parametrize("metric", ["cos", "ip"])
def test_a_fresh_head_learns_and_the_best_epoch_is_saved(world, metric):
    args = world.arguments(metric=metric)
    result = run_stage2(args)
    history = read_json(args.output_dir / "history.json")
    scores = [entry["dev_rkc_auroc"] for entry in history.epochs]
    assert len(scores) == args.epochs + 1
    assert result["dev"]["dev_rkc_auroc"] == max(scores[1:]) > scores[0] + 0.1
    assert result["best_epoch"] == history.best_epoch == int(np.argmax(scores[1:])) + 1
    assert dev_auroc(args.output_dir, args.train, args.dev) == pytest.approx(max(scores[1:]), abs=1e-6)
    assert history.epochs[-1].loss < history.epochs[1].loss


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "triplet"},
        {"loss": "triplet", "hard_positives": 2, "hard_negatives": 3},
        {"loss": "naive"},
        {"metric": "l2", "l2_normalise": True, "temperature": 0.05},
        {"metric": "l2", "l2_squared": False, "loss": "triplet"},
        {"temperature": 0.1, "hard_positives": 3, "pseudo_gold_positives": 0},
        {"class_weights": "balanced"},
    ],
    ids=str,
)
def test_every_loss_and_similarity_learns(world, changes):
    args = world.arguments(**changes)
    result = run_stage2(args)
    history = read_json(args.output_dir / "history.json").epochs
    assert result["dev"]["dev_rkc_auroc"] > history[0].dev_rkc_auroc + 0.1
    assert read_json(args.output_dir / "ra_hmd.json").arguments.loss == args.loss


def test_the_loss_alone_pulls_classes_apart(world):
    """Without cross-entropy: what is learnt comes from retrieval."""
    for loss in ("contrastive", "triplet", "naive"):
        args = world.arguments(loss=loss, ce_weight=0.0, output_dir=world.folder / loss)
        result = run_stage2(args)
        assert result["dev"]["dev_rkc_auroc"] > result["dev_before"]["dev_rkc_auroc"] + 0.1, loss


def test_balanced_weights_make_each_class_weigh_the_same(world, features):
    rare = features(400, 0, "rare")
    keep = np.flatnonzero((rare.labels == 0) | (np.cumsum(rare.labels) <= 20))
    args = world.arguments(train=world.store("rare", rare.select(keep)), class_weights="balanced")
    trainer = Trainer(
        args, MemeHead(HeadConfig(input_dim=16, proj_dim=32)), read_features(args.train), None, torch.device("cpu")
    )
    weights = trainer.class_weights[trainer.labels]
    assert weights[trainer.labels == 0].sum().item() == pytest.approx(weights[trainer.labels == 1].sum().item())
    assert weights.mean().item() == pytest.approx(1)


@pytest.mark.renders
def test_what_is_left_in_the_folder(world):
    save_fresh_head(world.folder / "stage1")
    inputs = {"template": "qwen2_vl", "image_max_pixels": 1024}
    write_json(
        world.folder / "stage1" / "ra_hmd.json", {"kind": "stage1", "inputs": inputs, "base_model": {"path": "b"}}
    )
    args = world.arguments(init_head=world.folder / "stage1", proj_dim=None, epochs=2)
    run_stage2(args)
    names = {path.name for path in args.output_dir.iterdir()}
    assert names == {
        "head.safetensors",
        "head.json",
        "history.json",
        "mining.json",
        "curves.png",
        "mining.png",
        "ra_hmd.json",
        INITIAL_HEAD,
    }
    manifest = read_json(args.output_dir / "ra_hmd.json")
    assert manifest.kind == "stage2"
    assert manifest.arguments.lr == args.lr
    assert manifest.arguments.train == str(args.train)
    assert manifest.seed == 1
    assert manifest.inputs == inputs
    assert manifest.init_head.sha256 == sha256_file(world.folder / "stage1" / HEAD_WEIGHTS)
    assert manifest.head_sha256 == sha256_file(args.output_dir / HEAD_WEIGHTS)
    assert manifest.features.dev.fingerprint == read_features(args.dev).manifest.fingerprint
    initial = (args.output_dir / INITIAL_HEAD / HEAD_WEIGHTS).read_bytes()
    assert initial == (world.folder / "stage1" / HEAD_WEIGHTS).read_bytes()
    mining = read_json(args.output_dir / "mining.json").searches
    assert [entry.epoch for entry in mining] == [1, 2]


def test_the_same_seed_gives_the_same_bytes(world):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(99)
        torch.rand(seed)  # what ran before must not matter
        args = world.arguments(output_dir=world.folder / name, seed=seed, epochs=3, dropout=(0.2,), input_dropout=0.1)
        run_stage2(args)
        weights.append((args.output_dir / HEAD_WEIGHTS).read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_starting_from_a_good_head_never_loses_on_dev(world):
    """The initial head is a candidate: a learning rate that ruins it keeps it."""
    args = world.arguments()
    good = run_stage2(args)["dev"]["dev_rkc_auroc"]
    again = world.arguments(
        output_dir=world.folder / "again", init_head=args.output_dir, proj_dim=None, lr=10.0, epochs=2, metric="cos"
    )
    result = run_stage2(again)
    assert result["dev"]["dev_rkc_auroc"] >= good
    assert result["best_epoch"] == 0
    assert any("kept unchanged" in note for note in result["notes"])
    first, second = (load_file(folder / HEAD_WEIGHTS) for folder in (args.output_dir, again.output_dir))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_mining_finds_all_it_is_asked_for_to_the_last_epoch(world, features):
    """On separable data the official search of 12 candidates finds no hard negative, and the anchor as its positive."""
    world.store("easy", features(300, 5, "easy", noise=0.05))
    args = world.arguments(train=world.folder / "easy", dev=None, epochs=20, hard_negatives=3, pseudo_gold_positives=2)
    run_stage2(args)
    for entry in read_json(args.output_dir / "mining.json").searches:
        for kind, asked in (("positives", 2), ("hard_negatives", 3)):
            assert entry[kind].found == asked * 300
            assert entry[kind].anchors_short == 0
    last = read_json(args.output_dir / "mining.json").searches[-1]
    assert last.hard_negatives.similarity.median < last.positives.similarity.median


def test_without_dev_the_last_epoch_is_kept_and_said_so(world):
    args = world.arguments(dev=None, epochs=3)
    result = run_stage2(args)
    assert (result["best_epoch"], result["select_by"], result["dev"]) == (3, None, {})
    assert any("last epoch (3) was kept" in note for note in result["notes"])
    assert list(read_json(args.output_dir / "ra_hmd.json").notes) == result["notes"]


@pytest.mark.parametrize("select_by", ["dev_lrc_auroc", "dev_rkc_accuracy", "dev_lrc_accuracy"])
def test_the_epoch_is_chosen_by_the_named_score(world, select_by):
    args = world.arguments(select_by=select_by, epochs=6)
    result = run_stage2(args)
    scores = [entry[select_by] for entry in read_json(args.output_dir / "history.json").epochs[1:]]
    assert result["dev"][select_by] == max(scores)


def test_dev_labels_do_not_reach_the_weights(world, features):
    """Training must be the same whatever dev holds, apart from the choice of the epoch."""
    world.store("dev_other", features(60, 9, "other"))
    losses = []
    for dev in (world.folder / "dev", world.folder / "dev_other", None):
        args = world.arguments(dev=dev, epochs=3)
        run_stage2(args)
        losses.append([entry["loss"] for entry in read_json(args.output_dir / "history.json").epochs[1:]])
    assert losses[0] == losses[1] == losses[2]


def make_trainer(world, **changes):
    args = world.arguments(dev=None, **changes)
    torch.manual_seed(0)
    head = MemeHead(HeadConfig(input_dim=16, proj_dim=32))
    return Trainer(args, head, read_features(args.train), None, torch.device("cpu"))


def give(trainer, monkeypatch, positives, hard_negatives):
    """Let every batch have these rows."""
    monkeypatch.setattr(trainer.miner, "rows", lambda anchors, embedding: (positives, hard_negatives))


def test_total_loss_weighs_the_two_and_the_bank_gets_no_gradient(world, monkeypatch):
    trainer = make_trainer(world, ce_weight=0.25)
    assert not trainer.bank.requires_grad
    rows = torch.arange(8)
    give(trainer, monkeypatch, rows[:, None] + 10, rows[:, None] + 20)
    total, retrieval, classification = trainer._losses(rows)
    assert total.item() == pytest.approx(0.75 * retrieval.item() + 0.25 * classification.item())


@pytest.mark.parametrize("kind", ["positives", "hard_negatives"])
def test_an_absent_row_is_not_row_minus_one(world, kind, monkeypatch):
    """-1 as an index is the last bank row; it must be masked."""
    trainer = make_trainer(world)
    rows = torch.arange(8)
    mined = {
        "positives": torch.stack([rows + 10, rows + 20], 1),
        "hard_negatives": torch.stack([rows + 30, rows + 40], 1),
    }
    mined[kind][:, 1] = -1
    give(trainer, monkeypatch, **mined)
    before = trainer._losses(rows)
    trainer.bank[-1] = 100.0
    trainer.bank[0] = 100.0
    assert torch.equal(before, trainer._losses(rows))


def test_a_step_never_waits_for_the_device(world, monkeypatch):
    """Values leave the device once an epoch, not once a step; a step has no `.item()`."""
    trainer = make_trainer(world)
    calls = Counter()

    def spy(name):
        original = getattr(torch.Tensor, name)

        def wrapper(self, *args, **kwargs):
            if sys._getframe(1).f_globals["__name__"].startswith(("stage2", "ra_hmd.training")):
                calls[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, wrapper)

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        spy(name)
    monkeypatch.setattr(
        ra_hmd.training.trainer, "clip_gradients", lambda *clip: nn.utils.clip_grad_norm_(clip[0].parameters(), 1)
    )
    trainer.train_epoch(1, lambda: None)
    assert calls == {"cpu": 1, "numpy": 1, "tolist": 3, "__int__": 1}  # the bank to its search, the losses to the log


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, float("inf"), float("nan")])
def test_gradients_are_clipped_as_torch_does(length):
    heads = [MemeHead(HeadConfig(input_dim=4, proj_dim=8)) for _ in range(2)]
    for head in heads:
        torch.manual_seed(0)
        grads = [torch.randn_like(parameter) for parameter in head.parameters()]
        whole = torch.cat([grad.reshape(-1) for grad in grads]).norm()
        for parameter, grad in zip(head.parameters(), grads, strict=True):
            parameter.grad = grad * (length / whole)
    found = clip_gradients(heads[0], 1.0)
    expected = nn.utils.clip_grad_norm_(heads[1].parameters(), 1.0)
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(one.grad.nan_to_num(7), other.grad.nan_to_num(7))


def test_an_epoch_covers_every_row_once(world):
    trainer = make_trainer(world, batch_size=32)
    first, second = (torch.cat(list(trainer._batches())) for _ in range(2))
    assert first.sort().values.tolist() == list(range(400))
    assert first.tolist() != second.tolist()


def test_biases_do_not_decay():
    head = MemeHead(HeadConfig(input_dim=4, num_layers=3, proj_dim=8))
    decayed, free = parameter_groups(head, 0.01)
    assert decayed["weight_decay"] == 0.01
    assert free["weight_decay"] == 0
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert len(decayed["params"]) == len(free["params"]) == 3


def test_a_loss_that_is_not_finite_stops_with_a_sentence(world):
    args = world.arguments(lr=1e30, metric="ip", epochs=3)
    with pytest.raises(UserError, match=r"^Stage 2, epoch 1: in step 2 the retrieval loss .* not finite for the memes "
                                        r"'train\d+'.*Lower `lr` \(1e\+30\), or set `metric: cos`"):  # fmt: skip
        run_stage2(args)
    assert not args.output_dir.exists()


def test_dropout_can_be_set_over_the_initial_head(world):
    save_fresh_head(world.folder / "h")
    args = world.arguments(init_head=world.folder / "h", proj_dim=None, dropout=(0.3,), epochs=1)
    run_stage2(args)
    assert load_head(args.output_dir).config.dropout == (0.3,)


def test_stores_and_heads_that_do_not_belong_together(world, features):
    def change(features: Features, **fields: object) -> Features:
        return Features(**{name: getattr(features, name) for name in ("ids", "labels", "hidden")} | fields)

    dev = features(20, 3, "x")
    cases = {
        "wide": (change(dev, hidden=np.ones((20, 5), np.float32)), {}, "size 16 .* and 5"),
        "prompt": (dev, {"inputs.prompt_template": "other"}, "inputs.prompt_template: '<image> {text}"),
        "adapter": (dev, {"adapter": "b" * 64}, "adapter: 'aaa"),
        "missing": (change(dev, labels=np.full(20, -1)), {}, "20 of 20 rows have no label"),
        "three": (change(dev, labels=np.arange(20) % 3), {}, r"labels \[2\]"),
        "single": (change(dev, labels=np.ones(20, int)), {}, "class 1 only; `select_by: dev_rkc_auroc`"),
        "nan": (change(dev, hidden=np.full((20, 16), np.nan, np.float32)), {}, "not finite, the first is 'x0'"),
    }
    for name, (content, fingerprint, message) in cases.items():
        path = world.store(f"dev_{name}", content, **fingerprint)
        with pytest.raises(UserError, match=message):
            run_stage2(world.arguments(dev=path))
    with pytest.raises(UserError, match="of class 1 only; training needs several"):
        run_stage2(world.arguments(train=world.folder / "dev_single"))
    save_fresh_head(world.folder / "narrow", input_dim=8)
    with pytest.raises(UserError, match=r"takes hidden states of size 8.*have 16"):
        run_stage2(world.arguments(init_head=world.folder / "narrow", proj_dim=None))
    save_fresh_head(world.folder / "many", output_dim=3, problem_type="multi_label")
    with pytest.raises(UserError, match="one class index per row; `problem_type: multi_label`"):
        run_stage2(world.arguments(init_head=world.folder / "many", proj_dim=None))


def test_the_head_of_another_adapter_is_refused(world):
    save_fresh_head(world.folder / "stage1")
    (world.folder / "stage1" / "adapter_model.safetensors").write_bytes(b"another adapter")
    with pytest.raises(UserError, match="adapter: 'aaa"):
        run_stage2(world.arguments(init_head=world.folder / "stage1", proj_dim=None))


def test_an_output_of_another_kind_is_not_overwritten(world):
    write_json(world.folder / "out" / "ra_hmd.json", {"kind": "stage1"})
    with pytest.raises(UserError, match="holds a 'stage1' run"):
        run_stage2(world.arguments())


def test_shared_ids_of_train_and_dev_are_noted(world, features):
    world.store("dev_leaky", features(50, 1, "train"))
    result = run_stage2(world.arguments(dev=world.folder / "dev_leaky", epochs=1))
    assert any("50 ids" in note for note in result["notes"])


def test_a_mined_self_match_would_stop_training(world, monkeypatch):
    """The official code's positives, for every anchor its own row, do not pass unnoticed."""
    own = np.arange(400)[:, None]
    faulty = Neighbours(own, np.ones((400, 1), np.float32))
    mined = Mined(faulty, faulty, faulty)
    features = read_features(world.folder / "train")
    with pytest.raises(RuntimeError, match="anchor itself"):
        stage2.mining.check_mined(mined, features.labels, features.ids)
    calls = []
    monkeypatch.setattr(stage2.mining, "check_mined", lambda *args: calls.append(args))
    run_stage2(world.arguments(epochs=2))
    assert len(calls) == 2, "every epoch's mining is checked"


def test_command_line(world, capsys):
    config = world.folder / "stage2.yaml"
    config.write_text(
        f"train: {world.folder}/train\ndev: {world.folder}/dev\noutput_dir: {world.folder}/cli\nepochs: 30\n"
    )

    def run(*words):
        return subprocess.run([sys.executable, "-m", "stage2", *words], capture_output=True, text=True, check=False)

    done = run(str(config), "epochs=1", "proj_dim=8", "lr=1e-3")
    assert done.returncode == 0, done.stderr
    manifest = read_json(world.folder / "cli" / "ra_hmd.json")
    assert (manifest.arguments.epochs, manifest.arguments.lr) == (1, 1e-3)
    failed = run(str(config), "epoch=1", "metric=l1")
    assert failed.returncode == 2
    assert "did you mean `epochs`" in failed.stderr
    assert "'l1' is not one of 'cos', 'ip', 'l2'" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_loss_is_a_function_and_a_row_of_the_table(world, monkeypatch):
    """As CONTRIBUTING.md says; the name is one that settings accept."""
    shapes = set()

    def pull(anchors, labels, positives, positive_mask, negatives, negative_mask, *, margin, **settings):
        shapes.add((anchors.ndim, positives.ndim, negatives.shape[2], *sorted(settings)))
        distance = 1 - (anchors[:, None] * positives).sum(dim=2)
        return (distance * positive_mask).sum() + margin

    monkeypatch.setitem(LOSSES, "naive", (pull, ("margin",)))
    run_stage2(world.arguments(loss="naive", margin=3.0, epochs=1))
    assert shapes == {(2, 3, 32, "in_batch_negatives", "similarity", "weights")}
    history = read_json(world.folder / "out" / "history.json")
    assert str(history).count("retrieval") >= 1
