"""Joint training (`rgcl: true`) in stock LLaMA-Factory, against naive loops over what it saved."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from engines import BIN, ROOT, run, train
from llamafactory.train import tuner
from safetensors.torch import load_file

from llamafactory_ext.arguments import STAGE, ClassifierFinetuningArguments
from ra_hmd.core.errors import UserError
from ra_hmd.data.meme_files import read_memes
from ra_hmd.features.extract_lmm import extract_hidden_states
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_run
from stage2.losses.settings import retrieval_loss

pytestmark = pytest.mark.slow

Config = Callable[..., dict[str, Any]]
PROBE = str(Path(__file__).with_name("joint_probe.py"))


def probe(config: dict[str, Any], folder: Path, ranks: int = 1) -> Path:
    """Train `config` in `ranks` processes, with everything that joint training did in `folder`."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    launcher = [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), "--standalone"]
    command = [*(launcher if ranks > 1 else [sys.executable]), PROBE, str(path), str(folder)]
    done = run(command, folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def naive_rows(bank: np.ndarray, labels: list[Any], asked: int, *, same: bool) -> list[list[int]]:
    """Nearest other rows by inner product, -1 where there are too few: a loop over anchors and rows."""
    found = []
    for anchor in range(len(bank)):
        rows = [row for row in range(len(bank)) if row != anchor and (labels[row] == labels[anchor]) == same]
        rows.sort(key=lambda row: (-float(bank[anchor] @ bank[row]), row))
        found.append((rows + [-1] * asked)[:asked])
    return found


def naive_contrastive(taken: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> float:
    """The contrastive loss of one saved batch, by its formula."""
    bank, anchors = saved["bank"].double().numpy(), taken["embedding"].double().numpy()
    labels, width = taken["labels"].tolist(), anchors.shape[1]
    losses = []
    for i, anchor in enumerate(anchors):
        index = int(taken["index"][i])
        positives = [row for row in saved["positives"][index].tolist() if row >= 0]
        hard = [row for row in saved["hard_negatives"][index].tolist() if row >= 0]
        if not positives:
            continue
        p = np.mean([math.exp(anchor @ bank[row] / width) for row in positives])
        h = np.mean([math.exp(anchor @ bank[row] / width) for row in hard]) if hard else 0.0
        n = sum(math.exp(anchor @ anchors[j] / width) for j in range(len(anchors)) if labels[j] != labels[i])
        losses.append(-math.log(p / (p + h + n)))
    return float(np.mean(losses))


def history(output: Path, key: str) -> dict[int, float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return {row["step"]: row[key] for row in state["log_history"] if key in row}


@pytest.fixture(scope="module")
def one_rank(stage1_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of four accumulated steps, each bank and each batch's loss saved; checkpoints every two steps."""
    folder = tmp_path_factory.mktemp("joint")
    config = stage1_config(
        folder / "out",
        rgcl=True,
        rgcl_reindex_every=2,
        rgcl_warmup=2,
        rgcl_hard_negatives=2,
        rgcl_pseudo_gold_positives=3,
        loss_ratio=[1.0, 0.5, 2.0],
        max_samples=24,
        num_train_epochs=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=5,
        dataloader_drop_last=True,  # of training batches; the bank has every meme
        save_strategy="steps",
        save_steps=2,
        plot_loss=True,
    )
    return probe(config, folder)


def test_bank_is_renewed_by_optimizer_steps_after_the_warm_up(one_rank: Path) -> None:
    steps = {int(path.stem.split("-")[2]) for path in one_rank.glob("bank-0-*.pt")}
    assert steps == {2, 4, 6}
    assert set(history(one_rank / "out", "rgcl_inverted")) == steps
    assert set(history(one_rank / "out", "loss")) == set(range(1, 9))
    assert set(history(one_rank / "out", "rgcl_loss")) == set(range(3, 9))
    assert (one_rank / "out" / "training_rgcl_loss.png").is_file()


def test_bank_is_the_extracted_embedding_of_the_training_set(one_rank: Path, memes: Path, tmp_path: Path) -> None:
    # The checkpoint of step 4 is what the bank of step 4 was made with.
    records = read_memes(memes / "confounders_a.json", media_dir=memes)[:24]
    extract_hidden_states(open_run(one_rank / "out" / "checkpoint-4"), records, tmp_path / "f", num_workers=0)
    bank = load(one_rank / "bank-0-4.pt")["bank"].numpy()
    assert np.abs(read_features(tmp_path / "f").embedding - bank).max() < 1e-4


def test_mined_rows_and_losses_equal_naive_loops(one_rank: Path, memes: Path) -> None:
    labels = [meme.label for meme in read_memes(memes / "confounders_a.json", media_dir=memes)[:24]]
    saved = {step: load(one_rank / f"bank-0-{step}.pt") for step in (2, 4, 6)}
    for entry in saved.values():
        bank = entry["bank"].numpy()
        assert entry["positives"].tolist() == naive_rows(bank, labels, 3, same=True)
        assert entry["hard_negatives"].tolist() == naive_rows(bank, labels, 2, same=False)
    losses = load(one_rank / "loss-0.pt")
    assert len(losses) == 12  # two micro-batches in each of the steps 3 to 8
    for taken in losses:
        step = int(taken["step"])
        assert taken["labels"].tolist() == [labels[index] for index in taken["index"].tolist()]
        assert float(taken["loss"]) == pytest.approx(naive_contrastive(taken, saved[step - step % 2]), abs=1e-5)


def test_logged_parts_make_up_the_loss(one_rank: Path) -> None:
    found = {key: history(one_rank / "out", key) for key in ("loss", "lm_loss", "lrc_loss", "rgcl_loss")}
    for step, loss in found["loss"].items():
        total = found["lm_loss"][step] + 0.5 * found["lrc_loss"][step] + 2 * found["rgcl_loss"].get(step, 0.0)
        assert loss == pytest.approx(total, rel=1e-3)


def test_resuming_where_the_bank_is_renewed_gives_the_same_weights(one_rank: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((one_rank / "config.yaml").read_text())
    changes = {"output_dir": str(tmp_path / "out"), "resume_from_checkpoint": str(one_rank / "out" / "checkpoint-4")}
    probe(config | changes, tmp_path)
    assert {path.name for path in tmp_path.glob("bank-*")} == {"bank-0-4.pt", "bank-0-6.pt"}
    for name in ("adapter_model.safetensors", "head.safetensors"):
        whole, resumed = (load_file(folder / "out" / name) for folder in (one_rank, tmp_path))
        assert max(float((whole[key] - resumed[key]).abs().max()) for key in whole) <= 1e-6


@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3"])
def test_two_ranks_share_one_bank(stage1_config: Config, memes: Path, tmp_path: Path, engine: str) -> None:
    # 18 memes on two ranks in batches of four: the last batches are filled up with repeats.
    config = stage1_config(
        tmp_path / "out",
        rgcl=True,
        rgcl_reindex_every=2,
        max_samples=18,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        do_eval=True,
        deepspeed=None if engine == "ddp" else str(ROOT / f"configs/deepspeed/{engine}.json"),
    )
    probe(config, tmp_path, ranks=2)
    labels = [meme.label for meme in read_memes(memes / "confounders_a.json", media_dir=memes)[:18]]
    for step in (0, 2):
        one, other = (load(tmp_path / f"bank-{rank}-{step}.pt") for rank in (0, 1))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one["bank"].shape == (18, 32)
        assert one["positives"].tolist() == naive_rows(one["bank"].numpy(), labels, 1, same=True)
    value = history(tmp_path / "out", "rgcl_loss")
    taken = [load(tmp_path / f"loss-{rank}.pt") for rank in (0, 1)]
    assert set(taken[0][0]["index"].tolist()).isdisjoint(taken[1][0]["index"].tolist())
    for number, pair in enumerate(zip(*taken, strict=True)):
        saved = load(tmp_path / f"bank-0-{number - number % 2}.pt")
        expected = [naive_contrastive(entry, saved) for entry in pair]
        assert [float(entry["loss"]) for entry in pair] == pytest.approx(expected, abs=1e-5)
        assert value[number + 1] == pytest.approx(np.mean(expected), abs=1e-4)


def test_several_labels_train_jointly(class_config: Config, class_memes: Path, tmp_path: Path) -> None:
    config = class_config(
        tmp_path / "out", "several", rgcl=True, rgcl_loss="triplet", rgcl_metrics="cos", class_weights="balanced",
        max_samples=16,
    )  # fmt: skip
    probe(config, tmp_path)
    sets = [set(record["label"]) for record in json.loads((class_memes / "several.json").read_text())[:16]]
    saved = load(tmp_path / "bank-0-0.pt")
    assert (saved["positives"] >= 0).any()
    for anchor, (positive, negative) in enumerate(zip(saved["positives"], saved["hard_negatives"], strict=True)):
        if positive >= 0:
            assert sets[anchor] & sets[positive] or not sets[anchor] | sets[positive]
        if negative >= 0:
            assert not sets[anchor] & sets[negative]
            assert sets[anchor] | sets[negative]
    assert all(math.isfinite(value) for value in history(tmp_path / "out", "rgcl_loss").values())


def test_losses_and_metrics_are_those_of_stage_2() -> None:
    from stage2.losses.contrastive import contrastive_loss
    from stage2.losses.naive import naive_loss
    from stage2.losses.similarity import Similarity
    from stage2.losses.triplet import triplet_loss

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(*shape, generator=generator) for shape in ((6, 4), (6, 2, 4), (6, 3, 4))]
    labels, masks = torch.tensor([0, 1, 0, 1, 1, 0]), [torch.rand(6, k, generator=generator) > 0.3 for k in (2, 3)]
    given = (rows[0], labels, rows[1], masks[0], rows[2], masks[1])
    for metric in ("cos", "ip", "l2"):
        similarity = Similarity(metric)
        for name, expected in (
            ("contrastive", contrastive_loss(*given, similarity=similarity, temperature=0.5)),
            ("triplet", triplet_loss(*given, similarity=similarity, margin=0.7)),
            ("naive", naive_loss(*given, similarity=similarity)),
        ):
            args = ClassifierFinetuningArguments(
                stage=STAGE, rgcl=True, rgcl_loss=name, rgcl_metrics=metric, rgcl_temperature=0.5, rgcl_margin=0.7
            )
            assert torch.equal(retrieval_loss(args.joint_loss)(*given), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rgcl_warmup": 10}, "`rgcl_warmup` is set without `rgcl: true`"),
        ({"loss_ratio": [1, 1, 1]}, r"give two weights >= 0, not both 0: \[r0, r1\] \(and r2 with `rgcl: true`\)"),
        ({"rgcl": True, "loss_ratio": [1, 1, 0]}, "its weight in `loss_ratio` is 0"),
        ({"rgcl": True, "loss_ratio": [1]}, r"give two weights >= 0, not both 0: \[r0, r1\]"),
        ({"rgcl": True, "rgcl_reindex_every": 0}, "`rgcl_reindex_every` is 0, it must be above 0"),
        ({"rgcl": True, "rgcl_pseudo_gold_positives": 0}, "`rgcl_pseudo_gold_positives` is 0"),
        ({"rgcl": True, "rgcl_metrics": "dot"}, "'dot' is not one of 'cos', 'ip', 'l2'"),
        ({"rgcl": True, "rgcl_temperature": 0}, "`rgcl_temperature` is 0.0, it must be above 0"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassifierFinetuningArguments(stage=STAGE, **changes)


def test_third_weight_is_one_unless_given() -> None:
    weights = [ClassifierFinetuningArguments(stage=STAGE, rgcl=True, loss_ratio=r).loss_weights
               for r in ([0.5, 2], [0.5, 2, 3])]  # fmt: skip
    assert weights == [(0.5, 2, 1), (0.5, 2, 3)]


def test_data_without_negatives_are_refused(stage1_config: Config, memes: Path, tmp_path: Path) -> None:
    records = [record for record in json.loads((memes / "confounders_a.json").read_text()) if record["label"] == 1]
    for record in records:
        record["images"] = [str(memes / record["images"][0])]
    (tmp_path / "confounders_a.json").write_text(json.dumps(records[:8]))
    (tmp_path / "dataset_info.json").write_text((memes / "dataset_info.json").read_text())
    config = stage1_config(tmp_path / "out", rgcl=True, dataset_dir=str(tmp_path), eval_dataset=None)
    with pytest.raises(UserError, match="no two memes of the training data are of different classes"):
        tuner.run_exp(config, callbacks=[])
    alone = {"rgcl_hard_negatives": 0, "per_device_train_batch_size": 1, "dataset_dir": str(memes)}
    with pytest.raises(UserError, match="`per_device_train_batch_size` is 1; raise one of them"):
        tuner.run_exp(config | alone, callbacks=[])


def test_warm_up_that_never_ends_is_refused(stage1_config: Config, tmp_path: Path) -> None:
    config = stage1_config(tmp_path / "out", rgcl=True, rgcl_warmup=2, max_samples=16, eval_dataset=None)
    with pytest.raises(UserError, match="`rgcl_warmup` is 2, but training has 2 steps"):
        tuner.run_exp(config, callbacks=[])


def test_stock_command_trains_jointly_as_without_until_the_warm_up_ends(stage1_config: Config, tmp_path: Path) -> None:
    for name, changes in (("with", {"rgcl": True, "rgcl_warmup": 1}), ("without", {})):
        config = stage1_config(tmp_path / name, max_samples=16, save_strategy="steps", save_steps=1, **changes)
        train(config, tmp_path)
    heads = {
        (name, step): load_file(tmp_path / name / f"checkpoint-{step}" / "head.safetensors")
        for name in ("with", "without")
        for step in (1, 2)
    }
    same, other = ([torch.equal(heads["with", step][key], heads["without", step][key]) for key in heads["with", step]]
                   for step in (1, 2))  # fmt: skip
    assert all(same)
    assert not all(other)
