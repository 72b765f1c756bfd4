"""Several seeds, a sweep, early stopping, refreshes within an epoch."""

import shutil
import statistics
from dataclasses import replace

import pytest
import torch
from json_files import read_json

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import read_features
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, MemeHead
from stage2.trainer import Trainer, run_stage2


def test_seeds_are_the_single_runs_and_their_spread(world):
    result = run_stage2(world.arguments(seeds=3, epochs=3, output_dir=world.folder / "seeds"))
    scores = []
    for seed in (1, 2, 3):
        single = run_stage2(world.arguments(seed=seed, epochs=3, output_dir=world.folder / f"single-{seed}"))
        scores.append(single["dev"]["dev_rkc_auroc"])
        one, other = (world.folder / name / HEAD_WEIGHTS for name in (f"seeds/seed-{seed}", f"single-{seed}"))
        assert one.read_bytes() == other.read_bytes()
    assert [run["dev"]["dev_rkc_auroc"] for run in result["runs"]] == scores
    assert len(set(scores)) == 3
    assert result["dev_mean"]["dev_rkc_auroc"] == pytest.approx(statistics.fmean(scores))
    assert result["dev_std"]["dev_rkc_auroc"] == pytest.approx(statistics.stdev(scores))
    assert result["best"]["seed"] == 1 + scores.index(max(scores))
    saved = read_json(world.folder / "seeds" / "seeds.json")
    assert saved.dev_mean == result["dev_mean"]
    assert read_json(world.folder / "seeds" / "ra_hmd.json").kind == "stage2_seeds"


@pytest.mark.renders
def test_a_sweep_runs_every_combination_and_dev_chooses(world):
    grid = {"lr": [1e-6, 5e-3], "hard_negatives": [1, 2]}
    args = world.arguments(sweep=grid, seeds=2, epochs=3, output_dir=world.folder / "sweep")
    result = run_stage2(args)
    points = [trial["settings"] for trial in result["trials"]]
    assert points == [{"lr": lr, "hard_negatives": m} for lr in (1e-6, 5e-3) for m in (1, 2)]
    means = [trial["mean"] for trial in result["trials"]]
    assert result["best"]["trial"] == means.index(max(means)) in (2, 3)
    for number, point in enumerate(points):
        seeds = read_json(args.output_dir / f"trial-{number:03d}" / "seeds.json")
        assert seeds.dev_mean.dev_rkc_auroc == means[number]
        manifest = read_json(args.output_dir / f"trial-{number:03d}" / "seed-2" / "ra_hmd.json")
        assert manifest.arguments.lr == point["lr"]
        assert manifest.seed == 2
    assert (args.output_dir / "sweep.png").stat().st_size > 1000
    assert (args.output_dir / "sweep.md").read_text().count("\n| ") == 2 + len(points), (
        "header, rule and a row per trial"
    )


def test_what_is_finished_is_not_done_again(world, monkeypatch):
    args = world.arguments(seeds=3, epochs=2)
    fits = []
    monkeypatch.setattr(Trainer, "fit", lambda self, fit=Trainer.fit: (fits.append(self.args.seed), fit(self)))
    whole = run_stage2(args)
    assert fits == [1, 2, 3]
    (args.output_dir / "seed-2" / "ra_hmd.json").unlink()  # stopped before its last file
    assert run_stage2(args) == whole
    assert fits == [1, 2, 3, 2]
    run_stage2(world.arguments(seeds=3, epochs=1))
    assert fits == [1, 2, 3, 2, 1, 2, 3], "other settings are another run"


@pytest.mark.parametrize("asked", [{"seeds": 2}, {"sweep": {"lr": [1e-3, 5e-3]}}])
@pytest.mark.parametrize("store", ["train", "dev"])
def test_features_that_were_replaced_are_trained_on_anew(world, monkeypatch, asked, store):
    """Ids, labels and all that the manifest states stay the same; the hidden states are others."""
    args = world.arguments(epochs=2, **asked)
    fits = []
    monkeypatch.setattr(Trainer, "fit", lambda self, fit=Trainer.fit: (fits.append(1), fit(self)))
    before = run_stage2(args)
    assert run_stage2(args) == before
    assert len(fits) == 2
    place = world.folder / store
    old, manifest = read_features(place), (place / "manifest.json").read_bytes()
    hidden = old.hidden.copy()
    hidden[:, :2] *= -1
    hidden[: len(hidden) // 2, 1] *= -1
    shutil.rmtree(place)
    world.store(store, replace(old, hidden=hidden))
    (place / "manifest.json").write_bytes(manifest)
    after = run_stage2(args)
    assert len(fits) == 4
    shutil.rmtree(args.output_dir)
    assert run_stage2(args) == after, "as if nothing had been there"
    assert after != before


def test_early_stopping(world):
    args = world.arguments(patience=2, epochs=40, lr=0.05)
    result = run_stage2(args)
    history = read_json(args.output_dir / "history.json").epochs
    assert result["epochs"] == len(history) - 1 == result["best_epoch"] + 2 < 40


def test_settings_that_do_not_fit_are_told_together(world):
    with pytest.raises(UserError, match=r"(?s)`sweep`: unknown key `learning_rate`.*`sweep.seed` cannot be swept"):
        world.arguments(sweep={"learning_rate": [1], "seed": [1, 2]})
    with pytest.raises(UserError, match=r"`sweep.lr` is 0.1, a list"):
        world.arguments(sweep={"lr": 0.1})
    with pytest.raises(UserError, match=r"`sweep` at \{'lr': -1\}: (?s:.*)`lr` is -1"):
        world.arguments(sweep={"lr": [1e-3, -1]})
    with pytest.raises(UserError, match="`sweep` needs `dev`"):
        world.arguments(sweep={"lr": [1e-3]}, dev=None)
    with pytest.raises(UserError, match="`patience` is set, but there is no `dev`"):
        world.arguments(patience=3, dev=None)
    with pytest.raises(UserError, match="`sweep`: 3 is not a mapping"):
        world.arguments(sweep=3)


@pytest.mark.parametrize(("every", "searches"), [(None, 1), (5, 2), (1, 7)])
def test_the_bank_is_mined_anew_within_an_epoch(world, every, searches):
    """400 rows in batches of 64 are 7 steps."""
    args = world.arguments(reindex_every=every, epochs=2)
    run_stage2(args)
    found = [(entry.epoch, entry.step) for entry in read_json(args.output_dir / "mining.json").searches]
    steps = [0] if every is None else list(range(0, 7, every))
    assert found == [(epoch, step) for epoch in (1, 2) for step in steps]
    assert len(steps) == searches


def test_what_is_compared_with_is_the_head_of_the_last_refresh(world, monkeypatch):
    torch.manual_seed(0)
    args = world.arguments(dev=None, reindex_every=1, batch_size=200)
    head = MemeHead(HeadConfig(input_dim=16, proj_dim=32))
    trainer = Trainer(args, head, read_features(args.train), None, torch.device("cpu"))
    banks = []
    refresh = trainer.miner.refresh

    def spy(bank, *rest):
        banks.append((bank.clone(), trainer._embed_bank()))
        refresh(bank, *rest)

    monkeypatch.setattr(trainer.miner, "refresh", spy)
    trainer.train_epoch(1, lambda: None)
    assert len(banks) == 2
    assert all(torch.equal(bank, now) for bank, now in banks)
    assert not torch.equal(banks[0][0], banks[1][0])
