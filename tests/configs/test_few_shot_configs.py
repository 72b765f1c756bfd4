"""The few-shot files against the programs that read them: recipes, studies, and their models on the meta device."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import ROOT, check_each, name_of

from ra_hmd.core.config import load_yaml
from ra_hmd.experiments.few_shot.arms import ARMS, arm_recipe
from ra_hmd.experiments.few_shot.config import FewShotSettings
from ra_hmd.experiments.few_shot.sizes import count_sizes
from ra_hmd.models.families import named_family

FOLDER = ROOT / "configs" / "few_shot"
FILES = sorted(FOLDER.glob("*.yaml"))
STUDIES = [path for path in FILES if path.stem.endswith("_study")]
RECIPES = [path for path in FILES if path not in STUDIES]
FAMILY = {"llava_1_5_13b": "llava", "qwen2_5_vl_7b": "qwen2_5_vl"}
# Parameters of experts and routers in millions (E 4, r 16, K 8), as the arithmetic of the method gives them.
EXPERTS = {"llava_1_5_13b": 100.1, "qwen2_5_vl_7b": 86.4}
DIFFERING = {
    "num_train_epochs": (1.0, 20.0),
    "router_lr": (2e-4, 1e-3),
    "cluster_prior_init": ("zero", "assign"),
    "moe_balance_scope": ("sample", "batch"),
    "cutoff_len": (2048, 1280),
}


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_are_two_recipes_and_a_study_for_each_model() -> None:
    expected = {f"{name}{end}" for name in FAMILY for end in ("", "_as_released", "_study")}
    assert {path.stem for path in FILES} == expected


def test_headers_name_model_launch_and_what_the_file_needs() -> None:
    def check(path: Path) -> None:
        header = path.read_text(encoding="utf-8").partition("\n\n")[0]
        assert all(line.startswith("#") and len(line) <= 121 for line in header.splitlines())
        assert f"configs/few_shot/{path.name}" in header
        for named in re.findall(r"configs/few_shot/\w+\.yaml", header):
            assert (ROOT / named).is_file(), named
        if path in RECIPES:
            assert load(path)["model_name_or_path"] in header
            assert "no published figure" in header.replace("\n# ", " ")

    check_each(FILES, check)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_parse_with_the_hyper_parameters_of_the_readme(path: Path, parse) -> None:
    args = parse(path, plugin=True)
    tuned = args.finetuning
    settings = tuned.expert_settings(8)
    assert (settings.num_experts, settings.rank, settings.alpha, settings.num_clusters) == (4, 16, 16.0, 8)
    assert (settings.prior_weight, settings.tau, settings.dropout, settings.universal) == (1.0, 1.0, 0.05, False)
    assert (tuned.lora_rank, tuned.lora_alpha, tuned.lora_dropout) == (16, 16, 0.05)
    assert tuned.lora_target == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (tuned.llm_moe, tuned.moe_balance_w, tuned.loss_ratio) == (True, 0.05, [1.0, 0.0])
    training = args.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 2)
    assert (training.learning_rate, training.warmup_ratio, training.weight_decay) == (2e-4, 0.03, 0.0)
    assert training.lr_scheduler_type == "cosine"
    assert args.data.cutoff_len >= 1280, "guidance takes about 150 tokens"
    assert args.model.quantization_bit is None
    assert "_test" not in path.read_text(encoding="utf-8").partition("### model")[2]


@pytest.mark.parametrize("name", FAMILY)
def test_the_two_recipes_of_a_model_differ_in_what_lets_the_prior_act(name: str) -> None:
    released, ours = load(FOLDER / f"{name}_as_released.yaml"), load(FOLDER / f"{name}.yaml")
    differing = {key: (released[key], ours[key]) for key in released if released[key] != ours.get(key)}
    assert set(released) == set(ours)
    differing.pop("output_dir")
    assert differing == DIFFERING
    header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").partition("\n\n")[0]
    assert all(f"`{key}" in header for key in DIFFERING)


def test_the_prior_s_reach_in_the_headers_is_that_of_the_recipes() -> None:
    """README's settings: 8 memes, 2 to a step, one epoch; Adam moves a weight by about the learning rate in a step."""
    for name in FAMILY:
        for path, (steps, reach) in {"_as_released": (4, 8e-4), "": (80, 0.08)}.items():
            keys = load(FOLDER / f"{name}{path}.yaml")
            batch = keys["per_device_train_batch_size"] * keys["gradient_accumulation_steps"]
            assert 2 * 4 // batch * keys["num_train_epochs"] == steps
            assert steps * keys["router_lr"] == pytest.approx(reach)


@pytest.mark.parametrize("path", STUDIES, ids=name_of)
def test_studies_share_a_recipe_between_all_arms_of_the_method(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = load_yaml(FewShotSettings, path, [])
    assert (settings.shots, settings.seeds) == ((4, 8, 16), 5)
    assert set(settings.arms) == set(ARMS) - {"lora_guidance", "ssmoe_without_guidance"}
    assert settings.recipe == Path(f"configs/few_shot/{path.stem.removesuffix('_study')}.yaml")
    own = arm_recipe(ARMS["ssmoe"], settings.base)
    kept = {key for key in own if own[key] == settings.base.get(key)}
    assert {"learning_rate", "num_train_epochs", "router_lr", "llm_moe", "expert_rank", "cutoff_len"} <= kept
    trained = sum(ARMS[arm].tuning is not None for arm in settings.arms)
    steps = 3 + 2 * trained * len(settings.shots) * settings.seeds
    assert f"{steps} steps" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FAMILY)
def test_parameters_on_the_meta_device_are_those_of_the_arithmetic(name: str, tmp_path: Path) -> None:
    base = load(FOLDER / f"{name}.yaml")
    hub = base["model_name_or_path"]
    (published,) = [one for one in named_family(FAMILY[name]).published if one.repository == hub]
    published.config().save_pretrained(tmp_path)
    counted = count_sizes(base | {"model_name_or_path": str(tmp_path)}, 8)
    own = counted.parameters["ssmoe"] - counted.parameters["lora"]
    assert own / 1e6 == pytest.approx(EXPERTS[name], abs=0.05)
    assert f"{own / 1e6:.0f} million" in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert counted.parameters["lora_matched"] / counted.parameters["ssmoe"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("path", [*STUDIES, ROOT / "configs/studies/few_shot_confounders.yaml"], ids=name_of)
def test_the_recipe_of_every_arm_is_one_that_the_stage_takes(
    path: Path, parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = load_yaml(FewShotSettings, path, [])
    for arm, stated in ARMS.items():
        if stated.tuning is None:
            continue
        (tmp_path / f"{arm}.yaml").write_text(yaml.safe_dump(arm_recipe(stated, settings.base, 12)))
        words = ["dataset=4_shot_seed_0"]
        words += [f"clusters={settings.clusters}"] if stated.clusters else []
        words += [f"guidance={settings.guidance}"] if stated.guidance else []
        args = parse(tmp_path / f"{arm}.yaml", *words, plugin=True)
        assert args.finetuning.llm_moe is (stated.tuning == "experts")
        assert args.finetuning.lora_rank == (12 if stated.tuning == "lora_matched" else 16)
        assert args.data.eval_dataset is None
        assert args.training.save_strategy == "no"


def test_guidance_of_the_synthetic_study_has_a_text_for_each_cluster() -> None:
    study = load_yaml(FewShotSettings, ROOT / "configs/studies/few_shot_confounders.yaml", [])
    header = (ROOT / "configs/studies/few_shot_confounders.yaml").read_text(encoding="utf-8").partition("\n\n")[0]
    texts = load(ROOT / "configs/studies/few_shot_confounders_guidance.yaml")
    count = int(re.search(r"--clusters (\d+)", header)[1])
    assert sorted(texts) == list(range(count))
    trained = sum(ARMS[arm].tuning is not None for arm in study.arms)
    assert f"{3 + 2 * trained * len(study.shots) * study.seeds} commands" in header
