"""`ra-hmd train-head` from stores to a head: what is learnt, kept, resumed, and what is refused."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from json_files import read_json
from safetensors.torch import load_file
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.evaluation.metrics.classification import auroc
from ra_hmd.features.compatibility import head_fingerprint
from ra_hmd.features.store import read_features
from ra_hmd.models.fusion import FusionConfig
from ra_hmd.models.head import HEAD_WEIGHTS, INITIAL_HEAD, HeadConfig, load_head, save_head
from ra_hmd.retrieval.embeddings import hidden_tensor, run_head
from ra_hmd.training.classification import ClassificationTrainer, train_head
from ra_hmd.training.inputs import head_config, initial_head
from stage2.trainer import run_stage2

BOTH = ("align", "concat", "cross", "cross_nd", "align_concat", "none")


def dev_auroc(folder, store):
    dev = read_features(store)
    return auroc(run_head(load_head(folder), hidden_tensor(dev))[1].double().numpy()[:, 0], dev.labels)


@pytest.mark.parametrize("fusion", [*BOTH, "image", "text"])
def test_both_modalities_together_tell_what_neither_tells_alone(encoded, fusion):
    args = encoded.head(fusion=fusion, epochs=40, **({"map_dim": None} if fusion == "none" else {}))
    score = train_head(args)["dev"]["dev_lrc_auroc"]
    assert dev_auroc(args.output_dir, args.dev) == pytest.approx(score, abs=1e-6)
    if fusion in BOTH:
        assert score > 0.95
    else:
        assert score < 0.62


def test_rgcl_learns_it_too_and_the_vote_decides(encoded):
    result = run_stage2(encoded.stage2())
    assert result["dev"]["dev_rkc_auroc"] > 0.95
    assert load_head(encoded.folder / "out").config.embedding == "linear"
    assert read_json(encoded.folder / "out" / "ra_hmd.json").encoder.path == "encoders/some"


@pytest.mark.renders
def test_what_is_left_in_the_folder(encoded):
    args = encoded.head(epochs=2, image_loss=0.5)
    train_head(args)
    assert {path.name for path in args.output_dir.iterdir()} == {
        "head.safetensors", "head.json", "history.json", "curves.png", "ra_hmd.json"
    }  # fmt: skip
    manifest = read_json(args.output_dir / "ra_hmd.json")
    assert (manifest.kind, manifest.seed, manifest.init_head) == ("head", 1, None)
    assert manifest.arguments.image_loss == 0.5
    assert manifest.encoder == {"path": "encoders/some", "features": "pooled"}
    assert head_fingerprint(args.output_dir) == read_features(args.train).manifest.fingerprint
    assert manifest.head_sha256 == sha256_file(args.output_dir / HEAD_WEIGHTS)
    config = load_head(args.output_dir).config
    assert config.fusion == FusionConfig(image_dim=12, text_dim=8, kind="align", map_dim=32, map_dropout=0.2)
    assert (config.input_dropout, config.dropout) == (0.4, (0.1,))
    history = read_json(args.output_dir / "history.json")
    assert history.select_by == "dev_lrc_auroc"
    assert {"loss", "classification", "image_loss", "dev_lrc_auroc", "dev_rkc_auroc"} <= history.epochs[1].keys()


def test_nothing_of_stage_2_is_imported():
    """So nothing can be mined."""
    script = (
        "import sys, ra_hmd.training.classification; print(any(name.split('.')[0] == 'stage2' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_same_seed_gives_the_same_bytes(encoded):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        args = encoded.head(output_dir=encoded.folder / name, seed=seed, epochs=2, text_loss=0.5)
        train_head(args)
        weights.append((args.output_dir / HEAD_WEIGHTS).read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_dev_labels_do_not_reach_the_weights(encoded, features):
    encoded.store("dev_other", features(60, 9, "other"))
    losses = []
    for dev in (encoded.folder / "dev", encoded.folder / "dev_other", None):
        args = encoded.head(dev=dev, epochs=3)
        train_head(args)
        losses.append([entry["loss"] for entry in read_json(args.output_dir / "history.json").epochs[1:]])
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close_to_float32(encoded, precision):
    histories = {}
    for name in ("no", precision):
        dry = {"map_dropout": 0.0, "input_dropout": 0.0, "dropout": (0.0,), "lr": 1e-3}
        args = encoded.head(mixed_precision=name, output_dir=encoded.folder / name, epochs=4, image_loss=0.5, **dry)
        train_head(args)
        histories[name] = read_json(args.output_dir / "history.json").epochs[1:]
        assert dev_auroc(args.output_dir, args.dev) == max(entry.dev_lrc_auroc for entry in histories[name])
        assert {tensor.dtype for tensor in load_file(args.output_dir / HEAD_WEIGHTS).values()} == {torch.float32}
    for exact, half in zip(histories["no"], histories[precision], strict=True):
        assert half.loss == pytest.approx(exact.loss, rel=5e-3)
        assert half.loss != exact.loss
        assert half.dev_lrc_auroc == pytest.approx(exact.dev_lrc_auroc, abs=5e-3)


def test_stage_2_runs_in_half_precision_too(encoded):
    assert run_stage2(encoded.stage2(mixed_precision="bf16"))["dev"]["dev_rkc_auroc"] > 0.95


def make_trainer(encoded, **changes):
    args = encoded.head(dev=None, **changes)
    train = read_features(args.train)
    torch.manual_seed(0)
    return ClassificationTrainer(args, initial_head(args, train), train, None, torch.device("cpu"))


def test_fp16_leaves_out_steps_that_overflow_and_says_so(encoded):
    trainer = make_trainer(encoded, mixed_precision="fp16", epochs=1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: value.clone() for name, value in trainer.head.state_dict().items()}
    trainer.fit()
    assert trainer.left_out == 7, "all of the epoch's steps"
    assert all(torch.equal(value, before[name]) for name, value in trainer.head.state_dict().items())
    assert trainer.outcome().notes == ["fp16: 7 steps overflowed and were left out; the loss is then scaled less."]


def test_a_loss_that_is_not_finite_stops_with_a_sentence(encoded, features):
    store = features(100, 0, "large")
    store.hidden[:] *= 1e6  # past float16's largest number
    large = encoded.head(train=encoded.store("large", store), dev=None, mixed_precision="fp16", epochs=40)
    with pytest.raises(UserError, match=r"^train-head, epoch 1: in step 1 the classification loss was not finite for "
                                        r"the memes 'large\d+', .* and 48 more\. Lower `lr` \(0\.005\), or use "
                                        r"`mixed_precision: bf16`; nothing was saved\.$"):  # fmt: skip
        train_head(large)
    with pytest.raises(UserError, match=r"epoch 1: in step 2 the classification loss .*Lower `lr` \(1e\+30\); nothing"):
        train_head(encoded.head(lr=1e30, epochs=2))
    with pytest.raises(UserError, match=r"epoch 1: values that are not finite, or too large .* the dev memes"):
        train_head(encoded.head(lr=1e30, epochs=1, batch_size=400))
    assert not large.output_dir.exists()


def test_a_batch_that_overflows_in_fp16_is_left_out(encoded, features):
    store = features(400, 0, "one")
    store.hidden[7] *= 1e6
    args = encoded.head(train=encoded.store("one", store), dev=None, mixed_precision="fp16", epochs=2)
    result = train_head(args)
    assert result.notes[-1] == "fp16: 2 steps overflowed and were left out; the loss is then scaled less."
    assert all(math.isfinite(entry.loss) for entry in read_json(args.output_dir / "history.json").epochs[1:])
    for tensor in load_file(args.output_dir / HEAD_WEIGHTS).values():
        assert torch.isfinite(tensor).all()


def test_gradients_that_are_not_finite_stop_with_a_sentence(encoded):
    trainer = make_trainer(encoded, epochs=1, batch_size=400)
    trainer.head.output.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(UserError, match=r"^train-head, epoch 1: the gradient was not finite in 1 step\. Lower `lr`"):
        trainer.fit()


def test_weights_that_are_not_finite_are_not_saved(encoded, tmp_path):
    head = make_trainer(encoded).head
    state = head.state_dict() | {"output.bias": torch.tensor([math.nan])}
    with pytest.raises(UserError, match=r"not saved, as weights are not finite; .*\n  - output\.bias$"):
        save_head(tmp_path / "head", head.config, state)
    assert not (tmp_path / "head").exists()


def test_patience_stops(encoded):
    args = encoded.head(patience=2, epochs=60, lr=0.02)
    result = train_head(args)
    history = read_json(args.output_dir / "history.json").epochs
    assert result["epochs"] == len(history) - 1 == result["best_epoch"] + 2 < 60


def test_seeds_sweep_and_what_is_finished(encoded, monkeypatch):
    fits = []
    fit = ClassificationTrainer.fit
    monkeypatch.setattr(ClassificationTrainer, "fit", lambda self: (fits.append(self.args.seed), fit(self)))
    args = encoded.head(seeds=2, epochs=2, sweep={"fusion": ["align", "text"], "num_layers": [2, 3]})
    result = train_head(args)
    assert [trial["settings"]["fusion"] for trial in result["trials"]] == ["align", "align", "text", "text"]
    assert result["best"]["settings"]["fusion"] == "align"
    assert fits == [1, 2] * 4
    (args.output_dir / "trial-001" / "seed-2" / "ra_hmd.json").unlink()
    assert train_head(args) == result
    assert fits == [1, 2] * 4 + [2]
    kinds = [read_json(args.output_dir / part / "ra_hmd.json").kind for part in ("", "trial-000", "trial-000/seed-1")]
    assert kinds == ["head_sweep", "head_seeds", "head"]
    single = train_head(encoded.head(epochs=2, seed=2, num_layers=3, output_dir=encoded.folder / "single"))
    assert single["dev"] == read_json(args.output_dir / "trial-001" / "seeds.json").runs[1].dev


def test_label_sets(encoded, features):
    """Which subjects are in picture or caption; the head tells each of them."""

    def sets(rows, seed, prefix):
        store = features(rows, seed, prefix)
        labels = np.array([[c in extra["both"] for c in range(4)] for extra in store.extras]).astype(np.int64)
        return features(rows, seed, prefix, labels=labels)

    paths = {"train": encoded.store("s_train", sets(400, 0, "t")), "dev": encoded.store("s_dev", sets(200, 1, "d"))}
    kind = {"problem_type": "multi_label", "output_dim": 4}
    result = train_head(encoded.head(**paths, **kind, fusion="concat", epochs=20, class_weights="balanced"))
    assert result["dev"]["dev_lrc_auroc"] > 0.95
    result = run_stage2(
        encoded.stage2(**paths, **kind, fusion="concat", loss="contrastive", output_dir=encoded.folder / "rgcl")
    )
    assert result["dev"]["dev_rkc_auroc"] > 0.9
    with pytest.raises(UserError, match="`compat: official` has one class per meme"):
        run_stage2(
            encoded.stage2(
                **paths, compat="official", init_head=encoded.folder / "out", output_dir=encoded.folder / "x"
            )
        )


def test_one_of_several_classes(encoded, features):
    """What the picture shows: its features tell it, whatever is said."""
    stores = {}
    for name, rows, seed in (("c_train", 300, 0), ("c_dev", 150, 1)):
        store = features(rows, seed, name)
        shown = np.array([extra["shown"] for extra in store.extras])
        stores[name.removeprefix("c_")] = encoded.store(name, features(rows, seed, name, labels=shown))
    kind = {"problem_type": "single_label", "output_dim": 4, "fusion": "image"}
    assert train_head(encoded.head(**stores, **kind))["dev"]["dev_lrc_accuracy"] > 0.95


def test_a_trained_head_is_trained_on(encoded):
    """By either command, and the dropout may be another one."""
    train_head(encoded.head())
    first = encoded.folder / "out"
    args = encoded.head(init_head=first, output_dir=encoded.folder / "again", lr=10.0, epochs=1, map_dropout=0.5)
    result = train_head(args)
    assert result["best_epoch"] == 0, "a learning rate that ruins it keeps what was good"
    assert load_head(args.output_dir).config.fusion.map_dropout == 0.5
    before, after = load_file(first / HEAD_WEIGHTS), load_file(args.output_dir / HEAD_WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (args.output_dir / INITIAL_HEAD / HEAD_WEIGHTS).read_bytes() == (first / HEAD_WEIGHTS).read_bytes()
    assert read_json(args.output_dir / "ra_hmd.json").init_head.kind == "head"
    refined = run_stage2(encoded.stage2(init_head=first, output_dir=encoded.folder / "rgcl", epochs=2, lr=1e-4))
    assert refined["dev"]["dev_rkc_auroc"] >= refined["dev_before"]["dev_rkc_auroc"]


def test_the_shape_of_a_fresh_head(encoded, features):
    train = features(4, 0, "x")
    hateclipper = head_config(encoded.head(map_dim=None, num_layers=None, proj_dim=None), train)
    assert hateclipper == HeadConfig(
        input_dim=20, num_layers=4, proj_dim=1024, input_dropout=0.4, dropout=(0.1,) * 3, embedding="relu",
        fusion=FusionConfig(image_dim=12, text_dim=8, kind="align", map_dim=1024, mapping_layers=1, map_dropout=0.2),
    )  # fmt: skip
    assert head_config(encoded.head(num_layers=3, dropout=(0.2, 0.3)), train).dropout == (0.2, 0.3)
    assert head_config(encoded.head(num_layers=1), train).dropout == ()
    assert head_config(encoded.head(fusion="none", map_dim=None), train).fusion is None
    one_vector = type(train)(train.ids, train.labels, train.hidden)
    assert head_config(encoded.head(map_dim=None), one_vector).fusion is None
    assert head_config(encoded.stage2(fusion=None, map_dim=None), one_vector).fusion is None


def test_fusions_that_the_store_has_no_features_for_and_the_reverse(encoded, features):
    train = features(20, 0, "x")
    one_vector = encoded.store("one", type(train)(train.ids, train.labels, train.hidden))
    with pytest.raises(UserError, match=r"(?s)`fusion` is align, but .*one vector of 20.*`map_dim` is 32"):
        train_head(encoded.head(train=one_vector, fusion="align"))
    with pytest.raises(UserError, match=r"12 image and 8 text features: say with `fusion`.*`none` for one vector"):
        run_stage2(encoded.stage2(fusion=None, map_dim=None))
    with pytest.raises(UserError, match=r"multiplies features of 12 and 8 dimensions"):
        train_head(encoded.head(mapping_layers=0, map_dim=None))
    train_head(encoded.head(fusion="none", map_dim=None, epochs=1))
    with pytest.raises(UserError, match="`map_dropout` is set, but the head in .* has no fusion"):
        train_head(encoded.head(init_head=encoded.folder / "out", output_dir=encoded.folder / "x", map_dropout=0.1))


def test_a_sweep_is_checked_before_its_first_run(encoded):
    args = encoded.head(sweep={"fusion": ["align", "text"]}, image_loss=1.0)
    with pytest.raises(UserError, match="projects no image features"):
        train_head(args)
    assert not args.output_dir.exists()


def test_what_mining_needs_is_asked_before_the_first_run_of_a_sweep(encoded):
    for name, value, message in (
        ("mining", "sparse", "has no captions"),
        ("near_duplicate_bits", 4, "no image hashes"),
    ):
        args = encoded.stage2(sweep={name: ["dense" if name == "mining" else None, value]})
        with pytest.raises(UserError, match=message):
            run_stage2(args)
        assert not args.output_dir.exists()


def test_no_epoch_is_chosen_on_test_data(encoded, features):
    for name in ("test_seen", "latest", "holdout"):
        test = encoded.store(name, features(20, 3, "t"))
        for run, args in ((train_head, encoded.head(dev=test)), (run_stage2, encoded.stage2(dev=test))):
            with pytest.raises(UserError, match=rf"(?s)Nothing is chosen by test data.*split '{name}'"):
                run(args)
            assert not args.output_dir.exists()
    assert train_head(encoded.head(dev=encoded.store("dev_latest", features(20, 3, "l")), epochs=1))["dev"]


def test_command_line(encoded):
    config = encoded.folder / "head.yaml"
    config.write_text(f"train: {encoded.folder}/train\ndev: {encoded.folder}/dev\noutput_dir: {encoded.folder}/cli\n")
    words = [
        "epochs=1",
        "map_dim=8",
        "proj_dim=8",
        "mixed_precision=no",
        "fine_grained=[shown]",
        "fine_grained_loss=0.5",
    ]
    done = CliRunner().invoke(app, ["train-head", str(config), *words])
    assert done.exit_code == 0, done.output
    arguments = read_json(encoded.folder / "cli" / "ra_hmd.json").arguments
    assert (arguments.epochs, arguments.fine_grained, arguments.mixed_precision) == (1, ["shown"], "no")
    failed = CliRunner().invoke(app, ["train-head", str(config), "hard_negatives=1", "imag_loss=1"])
    assert failed.exit_code == 2
    assert "unknown key `hard_negatives`" in failed.output
    assert "did you mean `image_loss`" in failed.output
    failed = CliRunner().invoke(app, ["stage2", str(config), "image_loss=1"])
    assert "unknown key `image_loss`" in failed.output
