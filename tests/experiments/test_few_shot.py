"""The few-shot study without its trainings: settings, recipes of the arms, parameters, commands, and results."""

import json
import statistics
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from json_files import read_json
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from small_clusters import clusters_of
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.config import load_yaml
from ra_hmd.core.errors import UserError
from ra_hmd.data.guidance import Guidance
from ra_hmd.data.k_shot import read_shot_lists
from ra_hmd.data.meme_files import read_memes
from ra_hmd.experiments import pipeline
from ra_hmd.experiments.few_shot.arms import ARMS, arm_recipe, attention_of, optimizer_steps
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.few_shot.run import plan_few_shot, run_few_shot
from ra_hmd.experiments.few_shot.sizes import count_sizes
from ra_hmd.experiments.few_shot.steps import Study, few_shot_steps, prepare, shot_name
from ra_hmd.experiments.pipeline import Step
from ra_hmd.features.store import Features, read_features, write_features
from ra_hmd.features.test_lock import final_records
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.encoders import joint_vectors
from ra_hmd.models.experts.settings import ExpertSettings

QUIET = Console(file=StringIO(), width=200)
UNTRAINED = [arm for arm, stated in ARMS.items() if stated.tuning is None]
TRAINED = [arm for arm in ARMS if arm not in UNTRAINED]
Make = Callable[..., FewShotSettings]


@pytest.fixture
def make(tmp_path: Path, memes: Path, tiny: Callable[[str], Path]) -> Make:
    """A study of all arms on synthetic memes; keyword arguments override, None removes."""
    rng = np.random.default_rng(0)
    clusters = clusters_of(joint_vectors(rng.normal(size=(3, 5)), rng.normal(size=(3, 3))), (5, 3))
    clusters = clusters.copy_to(tmp_path / "clusters")
    Guidance(("Look at tea.", "Look at rain.", "Look at cats."), clusters.digest).copy_to(tmp_path / "guidance.json")
    recipe = {
        "model_name_or_path": str(tiny("qwen2_vl")),
        "template": "qwen2_vl",
        "stage": "sft-classifier",
        "lora_rank": 8,
        "lora_alpha": 16,
        "eval_dataset": "other_dev",
        "metric_for_best_model": "eval_lmh_auroc",
        "num_train_epochs": 3.0,
        "llm_moe": True,
        "llm_moe_num_experts": 2,
        "cluster_prior_scale": 3.0,
        "router_lr": 1e-2,
        "clusters": "somewhere",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def settings(*overrides: str, **changes: Any) -> FewShotSettings:
        values = {
            "data": str(memes / "a"),
            "output_dir": str(tmp_path / "out"),
            "recipe": str(tmp_path / "recipe.yaml"),
            "clusters": str(tmp_path / "clusters"),
            "guidance": str(tmp_path / "guidance.json"),
            "k_shot": str(tmp_path / "lists.json"),
            "shots": [2, 4],
            "seeds": 2,
            "arms": list(ARMS),
            "bootstrap_samples": 50,
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({key: one for key, one in (values | changes).items() if one is not None}))
        return load_yaml(FewShotSettings, path, list(overrides))

    return settings


# --- settings ---------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_told_at_once_and_before_anything_runs(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make(test_split="train", clusters=None, arms=["lora", "lora"], keys={"seed": 1, "output_dir": "x"}, shots=[0])
    told = str(caught.value)
    for part in (
        "`train_split` and `test_split`",
        "`guidance` belongs",
        "names one twice",
        "output_dir, seed",
        "shots",
    ):
        assert part in told, part
    with pytest.raises(UserError, match=r"(?s)`clusters` is not set; the arms guidance.*`guidance` is not set"):
        make(clusters=None, guidance=None)
    assert make(guidance=None, arms=["ssmoe", "ssmoe_ids_shuffled"]).arms == ("ssmoe", "ssmoe_ids_shuffled")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"template": ""}, "`template` is missing"),
        ({"finetuning_type": "full"}, "`finetuning_type: full`"),
        ({"problem_type": "multi_label"}, "limited to two classes"),
        ({"adapter_name_or_path": "saves/x"}, "`adapter_name_or_path: saves/x`"),
        ({"positive_answer": "Hateful"}, "'Yes. It is a hateful meme.'.* No and Hateful"),
    ],
)
def test_a_recipe_that_the_arms_cannot_share_is_refused(make: Make, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Study.open(make(keys=keys))


def test_splits_and_guidance_must_be_of_these_data_and_clusters(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`test_split` is 'test_seen'; it has"):
        Study.open(make(test_split="test_seen"))
    Guidance(("a", "b", "c"), "of others").copy_to(tmp_path / "guidance.json")
    with pytest.raises(UserError, match="written for other clusters"):
        Study.open(make())


def test_a_test_split_needs_final(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`test_split` is 'test', which is scored only with `--final`"):
        run_few_shot(make(), console=QUIET)
    assert not (tmp_path / "out").exists()


# --- arms -------------------------------------------------------------------------------------------------------------


def test_recipes_of_the_arms_differ_in_what_the_arms_are_and_in_nothing_else(make: Make) -> None:
    base = Study.open(make()).base
    recipes = {arm: arm_recipe(ARMS[arm], base, 12) for arm in TRAINED}
    moe = {"llm_moe", "llm_moe_num_experts", "router_lr"}
    expected = {"lora": set(), "lora_guidance": set(), "lora_matched": {"lora_target", "lora_rank", "lora_alpha"}}
    for arm, recipe in recipes.items():
        differing = {
            key for key in recipe.keys() | recipes["lora"].keys() if recipe.get(key) != recipes["lora"].get(key)
        }
        ours = moe if arm == "hydralora" else moe | {"cluster_prior_scale"}
        assert differing == expected.get(arm, ours), arm
    assert recipes["lora"]["lora_target"] == "q_proj,k_proj,v_proj,o_proj"
    matched = recipes["lora_matched"]
    assert (matched["lora_target"], matched["lora_rank"], matched["lora_alpha"]) == ("all", 12, 24)
    for recipe in recipes.values():
        assert not {"eval_dataset", "metric_for_best_model", "clusters", "output_dir"} & set(recipe)
        assert (recipe["num_train_epochs"], recipe["save_strategy"]) == (3.0, "no")
    alone = arm_recipe(ARMS["hydralora"], base | {"router_input": "none"})
    assert "router_input" not in alone
    assert arm_recipe(ARMS["ssmoe"], base | {"router_input": "none"})["router_input"] == "none"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("all", "q_proj,k_proj,v_proj,o_proj"),
        ("q_proj,v_proj", "q_proj,v_proj"),
        (["q_proj", "k_proj"], "q_proj,k_proj"),
        ("q_proj,up_proj", "q_proj,k_proj,v_proj,o_proj"),
    ],
)
def test_the_attention_s_layers_are_the_recipe_s_unless_it_names_the_mlp(given: Any, used: str) -> None:
    assert attention_of({"lora_target": given}) == used


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "shots", "steps"),
    [
        (1, 2, 1.0, 4, 4),
        (1, 2, 1.0, 8, 8),
        (1, 2, 20.0, 4, 80),
        (16, 1, 3.0, 4, 3),
        (3, 2, 2.0, 4, 4),
        (4, 1, 0.5, 8, 2),
    ],
)
def test_steps_are_counted_as_the_trainer_does(
    batch: int, accumulation: int, epochs: float, shots: int, steps: int
) -> None:
    """The trainer takes the last, smaller batch and the last, incomplete accumulation too."""
    keys = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    assert optimizer_steps(keys | {"num_train_epochs": epochs}, shots) == steps


def test_parameters_are_those_of_the_model(make: Make, tiny: Callable[[str], Path]) -> None:
    """Recomputed from the shapes of the tiny model: H 64, M 128, 2 layers, 2 heads of 32 and 1 key-value head."""
    base = Study.open(make()).base
    counted = count_sizes(base, 3)
    attention = 2 * 8 * ((64 + 64) * 2 + (64 + 32) * 2)
    mlp = 2 * (64 + 128) + (128 + 64)
    assert counted.parameters["lora"] == attention
    # A is shared, B has a block for each expert; the router has E logits per layer.
    rank, experts = ExpertSettings().rank, 2
    layer = 2 * (64 * rank + 128 * rank * experts) + (128 * rank + 64 * rank * experts) + experts * (64 + 1)
    assert counted.parameters["hydralora"] == attention + 2 * layer
    assert counted.parameters["ssmoe"] == attention + 2 * layer + 2 * 3 * experts
    assert len({counted.parameters[arm] for arm in TRAINED if arm.startswith("ssmoe")}) == 1
    per_rank = attention // 8 + 2 * mlp
    assert counted.parameters["lora_matched"] == counted.matched_rank * per_rank
    assert abs(counted.parameters["lora_matched"] / counted.parameters["ssmoe"] - 1) < 0.05
    assert {counted.parameters[arm] for arm in UNTRAINED} == {0}
    with pytest.raises(UserError, match="no rank comes within 5%"):
        count_sizes(base | {"lora_rank": 1, "expert_rank": 1, "llm_moe_num_experts": 1}, 3)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_parameters_and_all_commands_and_writes_nothing(make: Make, tmp_path: Path) -> None:
    settings = make()
    done = CliRunner().invoke(app, ["few-shot", str(tmp_path / "study.yaml"), "seeds=1", "--dry-run"])
    assert done.exit_code == 0, done.output
    steps = plan_few_shot(make("seeds=1"), QUIET)
    for step in steps:
        assert step.line in done.output
    assert len(steps) == 3 + 2 * len(TRAINED) * len(settings.shots)
    assert f"{count_sizes(Study.open(settings).base, 3).parameters['ssmoe']:,}" in done.output
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "lists.json").exists()


def test_commands_name_the_clusters_and_the_guidance_of_their_arm(make: Make, tmp_path: Path) -> None:
    study = Study.open(make())
    steps = few_shot_steps(study)
    assert len({step.line for step in steps}) == len(steps)
    changed = tmp_path / "out/shuffled"
    expected = {
        "lora": set(),
        "lora_matched": set(),
        "hydralora": set(),
        "lora_guidance": {f"clusters={tmp_path / 'clusters'}", f"guidance={tmp_path / 'guidance.json'}"},
        "ssmoe": {f"clusters={tmp_path / 'clusters'}", f"guidance={tmp_path / 'guidance.json'}"},
        "ssmoe_without_guidance": {f"clusters={tmp_path / 'clusters'}"},
        "ssmoe_guidance_shuffled": {
            f"clusters={tmp_path / 'clusters'}",
            f"guidance={changed / 'guidance-texts-1.json'}",
        },
        "ssmoe_ids_shuffled": {f"clusters={changed / 'clusters-1'}", f"guidance={changed / 'guidance-ids-1.json'}"},
    }
    for arm, words in expected.items():
        (step,) = [one for one in steps if f"output_dir={tmp_path / 'out/runs' / arm / '4-shot-seed-1'}" in one.command]
        assert {word for word in step.command if word.startswith(("clusters=", "guidance="))} == words, arm
        assert {"seed=1", f"dataset={shot_name(4, 1)}"} <= set(step.command)
    (guided,) = [step for step in steps if "with guidance" in step.title]
    assert guided.command[guided.command.index("--guidance") + 1] == str(tmp_path / "guidance.json")


def test_what_is_written_before_the_start_is_the_same_the_second_time(make: Make, tmp_path: Path) -> None:
    study = Study.open(make())
    prepare(study, 5)
    out = tmp_path / "out"
    lists = read_shot_lists(tmp_path / "lists.json")
    registry = json.loads((out / "data/dataset_info.json").read_text())
    assert set(registry) == {shot_name(shots, seed) for shots in (2, 4) for seed in (0, 1)}
    for shots in (2, 4):
        for seed in (0, 1):
            written = read_memes(out / "data" / registry[shot_name(shots, seed)]["file_name"])
            assert {meme.id for meme in written} == set(lists[shots][seed])
            assert sorted(meme.label for meme in written) == [0] * shots + [1] * shots
    union = {name for by_seed in lists.values() for ids in by_seed.values() for name in ids}
    assert {meme.id for meme in read_memes(out / "shots/4-shot-2-seeds.jsonl")} == union
    shuffled = Clusters.open(out / "shuffled/clusters-1")
    assert shuffled.digest == study.clusters.shuffled(1).digest
    assert Guidance.open(out / "shuffled/guidance-ids-1.json").clusters == shuffled.digest
    texts = Guidance.open(out / "shuffled/guidance-texts-0.json").texts
    assert sorted(texts) == sorted(study.guidance.texts)
    assert all(one != other for one, other in zip(texts, study.guidance.texts, strict=True))
    # Steps are done again where a file that they name is newer.
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in pipeline._CONTENT}
    prepare(Study.open(make()), 5)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "lora_rank: 5" in (out / "recipes/lora_matched.yaml").read_text()


# --- results ----------------------------------------------------------------------------------------------------------


class Drawn:
    """Takes the place of the commands: writes stores with drawn scores."""

    def __init__(self, settings: FewShotSettings, memes: Path) -> None:
        self.settings, self.memes = settings, memes
        self.done: list[str] = []
        self.scores: dict[str, np.ndarray] = {}

    def __call__(self, step: Step, log: Path) -> float:
        self.done.append(step.line)
        if step.command[0] == "llamafactory-cli":
            (folder,) = [word.partition("=")[2] for word in step.command if word.startswith("output_dir=")]
            Path(folder).mkdir(parents=True)
            return 0.1
        output = Path(step.command[step.command.index("--output") + 1])
        place = output.relative_to(self.settings.output_dir / "features").as_posix()
        source = self.settings.output_dir / f"shots/{output.name}.jsonl" if output.name.endswith("seeds") else ""
        rows = read_memes(source or self.memes / "a/test.jsonl")
        rng = np.random.default_rng(len(place) + 7 * sum(map(ord, place)))
        labels = np.array([meme.label for meme in rows])
        score = np.clip(0.5 + 0.2 * (labels - 0.5) + 0.3 * rng.normal(size=len(rows)), 0, 1).astype(np.float32)
        self.scores[place] = score.astype(np.float64)
        hidden = (labels[:, None] * 0.5 + rng.normal(size=(len(rows), 8))).astype(np.float32)
        features = Features([meme.id for meme in rows], labels, hidden, lmh_score=score[:, None])
        write_features(output, features, {"model": "m"}, split="train" if source else "test")
        return 0.1


def test_results_are_those_of_plain_loops_over_the_stores(
    make: Make, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make()
    commands = Drawn(settings, memes)
    monkeypatch.setattr(pipeline, "_run", commands)
    run_few_shot(settings, final=True, command="ra-hmd few-shot study.yaml --final", console=QUIET)
    found = read_json(tmp_path / "out/few_shot.json")
    labels = np.array([meme.label for meme in read_memes(memes / "a/test.jsonl")])
    cells = {(cell.arm, cell.shots): cell for cell in found.cells}
    assert set(cells) == {(arm, shots) for arm in ARMS for shots in (2, 4)}
    values = {
        "auroc": lambda score: roc_auc_score(labels, score),
        "accuracy": lambda score: accuracy_score(labels, score >= 0.5),
        "macro_f1": lambda score: f1_score(labels, score >= 0.5, average="macro"),
    }
    for (arm, shots), cell in cells.items():
        if arm in ("rkc", "krr"):
            assert len(cell.auroc.runs) == 2
            continue
        names = [f"{arm}/{shots}-shot-seed-{seed}" for seed in (0, 1)] if arm in TRAINED else [f"{arm}/untuned"]
        for metric, value in values.items():
            runs = [value(commands.scores[name]) for name in names]
            assert cell[metric].runs == pytest.approx(runs)
            assert cell[metric].value == pytest.approx(np.mean(runs))
            assert cell[metric].low <= cell[metric].value <= cell[metric].high
            assert cell[metric].std == (pytest.approx(statistics.stdev(runs)) if len(runs) > 1 else None)
    for one in found.differences:
        mine, theirs = cells[one.arm, one.shots], cells[one.against, one.shots]
        for metric in values:
            assert one[metric].value == pytest.approx(mine[metric].value - theirs[metric].value)
            assert one[metric].low <= one[metric].value <= one[metric].high
            assert len(one[metric].runs) == 2
            assert np.mean(one[metric].runs) == pytest.approx(one[metric].value)
    assert {one.against for one in found.differences} == {"lora", "rkc", "ssmoe"}
    assert len(found.differences) == 3 * 2 * (len(ARMS) - 1)
    self_check_of_records(tmp_path / "out", commands.done)
    # The second time nothing is done again, and the numbers are the same.
    before, commands.done = len(commands.done), []
    run_few_shot(settings, final=True, console=QUIET)
    assert (before, commands.done) == (len(few_shot_steps(Study.open(settings))), [])
    assert read_json(tmp_path / "out/few_shot.json").cells == found.cells
    # A further list is new work; another recipe is another study.
    run_few_shot(make("seeds=3", "arms=[rkc,lora]"), final=True, console=QUIET)
    assert len(commands.done) == 1 + 2 * 2
    with pytest.raises(UserError, match=r"(?s)holds a study of something else: recipe was .*num_train_epochs"):
        run_few_shot(make(keys={"num_train_epochs": 9}), final=True, console=QUIET)


def self_check_of_records(out: Path, done: list[str]) -> None:
    """The report and the manifest name what was run; opened test splits are recorded where the scores come from."""
    report, manifest = (out / "few_shot.md").read_text(), read_json(out / "ra_hmd.json")
    for arm in ARMS.values():
        assert arm.title.replace(",", "") in report.replace("\\", "").replace(",", "")
    assert "AUROC minus that of LoRA q,k,v,o, paired" in report
    assert set(manifest.commands) == set(done)
    assert manifest.kind == "few_shot"
    assert manifest.study.matched_rank > 0
    assert len(final_records(out / "runs/ssmoe/4-shot-seed-1")) == 1
    assert len(final_records(out)) == len(UNTRAINED)
    assert manifest.test[str(out / "runs/ssmoe/4-shot-seed-1")].test_sets
    assert (out / "few_shot.png").read_bytes().startswith(b"\x89PNG")


def test_the_vote_is_that_of_the_shots_and_no_query_is_left_out_for_its_id(
    make: Make, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(arms=["rkc"], seeds=1, shots=[4], topk=3)
    commands = Drawn(settings, memes)
    monkeypatch.setattr(pipeline, "_run", commands)
    run_few_shot(settings, final=True, console=QUIET)
    (cell,) = read_json(tmp_path / "out/few_shot.json").cells
    queries, shots = (
        read_features(tmp_path / "out/features/zero_shot" / name) for name in ("untuned", "4-shot-1-seeds")
    )
    scores = []
    for query in queries.hidden:
        similarity = shots.hidden @ query / np.linalg.norm(shots.hidden, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-similarity)[:3]
        signs = 2 * shots.labels[nearest] - 1
        scores.append((np.array([3, 2, 1]) * signs * similarity[nearest]).sum() / 6)
    assert cell.auroc.value == pytest.approx(roc_auc_score(queries.labels, scores))
    assert cell.accuracy.value == pytest.approx(accuracy_score(queries.labels, np.array(scores) >= 0))


def test_the_kernel_regression_is_that_of_the_shots(
    make: Make, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(arms=["krr"], seeds=1, shots=[4])
    commands = Drawn(settings, memes)
    monkeypatch.setattr(pipeline, "_run", commands)
    run_few_shot(settings, final=True, console=QUIET)
    assert len(commands.done) == 2, "the scored split and the shots, by the untuned model"
    (cell,) = read_json(tmp_path / "out/few_shot.json").cells
    queries, shots = (
        read_features(tmp_path / "out/features/zero_shot" / name) for name in ("untuned", "4-shot-1-seeds")
    )
    asked, known = (store.hidden / np.linalg.norm(store.hidden, axis=1, keepdims=True) for store in (queries, shots))
    mean, scale = known.mean(axis=0), known.std(axis=0)
    asked, known = (asked - mean) / scale, (known - mean) / scale
    among = ((known[:, None] - known[None]) ** 2).sum(axis=2)
    gamma = 1 / np.median(among[np.triu_indices(len(known), 1)])
    weights = np.linalg.solve(np.exp(-gamma * among) + 0.1 * np.eye(len(known)), 2 * shots.labels - 1.0)
    scores = np.exp(-gamma * ((asked[:, None] - known[None]) ** 2).sum(axis=2)) @ weights
    assert cell.auroc.value == pytest.approx(roc_auc_score(queries.labels, scores))
    assert cell.accuracy.value == pytest.approx(accuracy_score(queries.labels, scores >= 0))


def test_stores_of_other_memes_are_refused(
    make: Make, memes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(arms=["zero_shot", "lora"], seeds=1, shots=[4])
    commands = Drawn(settings, memes)

    def other(step: Step, log: Path) -> float:
        commands.memes = memes if "--backbone-only" in step.command else tmp_path
        return commands(step, log)

    (tmp_path / "a").mkdir()
    lines = (memes / "a/test.jsonl").read_text().splitlines()
    (tmp_path / "a/test.jsonl").write_text("\n".join(lines[:-2]))
    (tmp_path / "a/img").symlink_to(memes / "a/img")
    monkeypatch.setattr(pipeline, "_run", other)
    with pytest.raises(UserError, match="other memes or labels"):
        run_few_shot(settings, final=True, console=QUIET)


def test_lists_that_are_there_are_used_as_they_are_and_others_refused(make: Make, memes: Path, tmp_path: Path) -> None:
    words = ["data", "k-shot", str(memes / "a"), "--output", str(tmp_path / "lists.json")]
    done = CliRunner().invoke(app, [*words, "--shots", "2", "4", "--seeds", "3"])
    assert done.exit_code == 0, done.output
    before = (tmp_path / "lists.json").read_bytes()
    prepare(Study.open(make()), 5)
    assert (tmp_path / "lists.json").read_bytes() == before
    (tmp_path / "lists.json").unlink()
    CliRunner().invoke(app, [*words, "--shots", "4", "--no-per-class"])
    with pytest.raises(UserError, match="K memes of all classes together.*Give another `k_shot`"):
        prepare(Study.open(make()), 5)
