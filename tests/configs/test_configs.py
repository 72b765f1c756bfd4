"""The YAML files of Stage 1, the DeepSpeed files and the data registry, against the programs that read them.

Covered: every YAML below `configs/stage1` goes through LLaMA-Factory's own `read_args` and `get_train_args`, that is
its parser and all of its cross-checks; only `use_cpu` is added (a CPU refuses bf16 otherwise) and `output_dir` moved.
The plain-SFT files do so with the stock argument classes, ours with the plugin's. Not covered: FlashAttention, Liger
and 4-bit kernels, and real weights, which need a GPU or a download.
"""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from config_files import CLASS_FILES, CLASSIFIER_FILES, FILES, ROOT, SFT_FILES, STAGE1, check_each, name_of
from meme_files import imported, jsonl, picture, table

from ra_hmd.core.config import load_yaml, unknown_keys
from ra_hmd.data.catalogue import dataset_info
from ra_hmd.data.import_dataset import ImportOptions
from ra_hmd.data.sharegpt_export import write_sharegpt
from ra_hmd.data.training_records import dataset_info_entry
from stage2.arguments import Stage2Arguments

JOINT_FILE = STAGE1 / "qwen2_vl_7b/hateful_memes_qlora_rgcl.yaml"

# epochs, linear layers of the head, per-device batch of the 2B model and of the others (method-and-peers 1.1.2)
OFFICIAL = {
    "hatefulmemes": (3, 2, 16, 16),
    "harmc": (3, 3, 16, 16),
    "harmp": (6, 3, 8, 2),
    "mami": (3, 3, 16, 16),
    "multioff": (12, 3, 16, 16),
    "pridemm": (4, 3, 16, 16),
}


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


class TestFiles:
    def test_the_folder_holds_what_the_table_says_and_nothing_else(self, make_configs: ModuleType) -> None:
        assert make_configs.compare(STAGE1) == []
        assert len(FILES) == len(make_configs.render_all()) == 195
        assert {*CLASS_FILES, JOINT_FILE} <= {*FILES}

    def test_compare_tells_missing_changed_and_extra_files(self, make_configs: ModuleType, tmp_path: Path) -> None:
        for path, text in make_configs.render_all().items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text, encoding="utf-8")
        assert make_configs.compare(tmp_path) == []
        (tmp_path / "qwen2_vl_2b" / "mami_lora.yaml").unlink()
        (tmp_path / "qwen2_vl_7b" / "mami_lora.yaml").write_text("stage: sft\n", encoding="utf-8")
        (tmp_path / "qwen2_vl_7b" / "deep" / "er").mkdir(parents=True)
        (tmp_path / "qwen2_vl_7b" / "deep" / "er" / "extra.yaml").write_text("", encoding="utf-8")
        problems = make_configs.compare(tmp_path)
        assert len(problems) == 3
        assert "mami_lora.yaml is missing" in problems[0]
        assert "extra.yaml has no recipe" in problems[1]
        assert "mami_lora.yaml differs" in problems[2]

    def test_every_header_names_the_commands_and_the_model(self) -> None:
        check_each(FILES, self._check_header)

    def _check_header(self, path: Path) -> None:
        header = path.read_text(encoding="utf-8").partition("\n\n###")[0]
        file = path.relative_to(ROOT).as_posix()
        assert all(line.startswith("#") and len(line) <= 125 for line in header.splitlines())
        for wanted in ("not measured here", f"llamafactory-cli train {file}", "FORCE_TORCHRUN=1", "zero2.json"):
            assert wanted in header
        assert load(path)["model_name_or_path"] in header

    def test_a_baseline_differs_from_its_classifier_in_nothing_but_the_method(self) -> None:
        check_each(SFT_FILES, self._check_baseline)

    def _check_baseline(self, path: Path) -> None:
        sft, classifier = load(path), load(path.with_name(path.name.replace("_sft", "")))
        differing = {key for key in sft.keys() | classifier.keys() if sft.get(key) != classifier.get(key)}
        method = {"stage", "loss_ratio", "classifier_lr", "num_layers", "dropout", "output_dir"}
        assert differing <= method | {"metric_for_best_model", "greater_is_better"}

    def test_no_two_files_share_an_output_folder(self) -> None:
        assert len({load(path)["output_dir"] for path in FILES}) == len(FILES)


class TestDemoAndStage2:
    @pytest.mark.parametrize("path", sorted((ROOT / "configs" / "demo").glob("*_vl.yaml")), ids=name_of)
    def test_the_host_reads_the_demo(self, path: Path, parse) -> None:
        ours = path.stem.startswith("stage1_")
        args = parse(path, plugin=ours)
        assert args.finetuning.stage == ("sft-classifier" if ours else "sft")
        assert args.data.template == ("qwen3_vl_nothink" if "qwen3" in path.stem else "qwen2_vl")
        assert f"llamafactory-cli train {path.relative_to(ROOT).as_posix()}" in path.read_text(encoding="utf-8")

    def test_the_demo_has_a_file_for_every_family(self) -> None:
        names = {path.name for path in (ROOT / "configs" / "demo").iterdir()}
        families = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
        assert names == {"pretrain_qwen2_vl.yaml", "stage2.yaml", *(f"stage1_{family}.yaml" for family in families)}

    @pytest.mark.parametrize(
        "path", [*sorted((ROOT / "configs" / "stage2").glob("*.yaml")), ROOT / "configs/demo/stage2.yaml"], ids=name_of
    )
    def test_stage2_reads_its_files(self, path: Path) -> None:
        args = load_yaml(Stage2Arguments, path, [])
        assert args.select_by == "dev_rkc_auroc"
        assert (args.batch_size, args.topk, args.ce_weight) == (64, 20, 0.5)


class TestParser:
    @pytest.mark.parametrize("files", [CLASSIFIER_FILES, SFT_FILES], ids=["classifier", "sft"])
    def test_the_host_reads_what_the_official_recipe_says(
        self, files: list[Path], parse, make_configs: ModuleType
    ) -> None:
        check_each(files, lambda path: self._check_recipe(path, parse, make_configs))

    def _check_recipe(self, path: Path, parse, make_configs: ModuleType) -> None:
        from llamafactory.data.template import TEMPLATES
        from llamafactory.extras.constants import QuantizationMethod

        sft = path.stem.endswith("_sft")
        args = parse(path, plugin=not sft)
        (dataset,), (dev,) = args.data.dataset, args.data.eval_dataset
        official = dataset.partition("_")[0]  # a task of several classes has the recipe of its data set
        epochs, num_layers, small_batch, batch = OFFICIAL[official]
        batch = small_batch if path.parent.name == "qwen2_vl_2b" else batch

        assert args.training.num_train_epochs == epochs
        assert args.training.per_device_train_batch_size == batch
        assert args.training.per_device_train_batch_size * args.training.gradient_accumulation_steps == 16
        assert args.training.learning_rate == pytest.approx(4e-5)
        assert args.training.lr_scheduler_type == "cosine"
        assert args.training.get_warmup_steps(1000) == 100
        assert (args.training.bf16, args.training.seed, args.training.report_to) == (True, 42, [])
        assert (args.training.eval_strategy, args.training.eval_steps, args.training.save_steps) == ("steps", 50, 50)
        assert args.training.load_best_model_at_end
        assert args.training.greater_is_better is not sft
        assert args.training.metric_for_best_model == ("eval_loss" if sft else "eval_lrc_auroc")

        assert (args.finetuning.lora_rank, args.finetuning.lora_alpha) == (128, 256)
        assert (args.finetuning.lora_dropout, args.finetuning.lora_target) == (0.05, ["all"])
        assert args.finetuning.freeze_vision_tower
        assert args.finetuning.freeze_multi_modal_projector

        assert args.model.quantization_bit == (4 if "_qlora" in path.stem else None)
        # The host does not check this one: a value that it does not know trains unquantised.
        assert "quantization_method" not in load(path) or args.model.quantization_method == QuantizationMethod.BNB
        assert args.model.image_max_pixels == 768 * 768
        model = next(entry for entry in make_configs.MODELS if entry.folder == path.parent.name)
        assert args.model.model_name_or_path == model.hub
        assert args.model.enable_liger_kernel is model.liger
        assert args.model.flash_attn == model.attention
        assert (args.model.crop_to_patches, args.model.image_do_pan_and_scan) == (False, False)
        assert not args.model.trust_remote_code

        assert args.data.cutoff_len == 1024
        assert args.data.template == model.template
        assert args.data.template in TEMPLATES
        registry = json.loads((ROOT / args.data.dataset_dir / "dataset_info.json").read_text(encoding="utf-8"))
        assert path in CLASS_FILES or {dataset, dev} <= registry.keys()
        assert dev == f"{dataset}_dev"
        assert "_test" not in path.read_text(encoding="utf-8")

        if sft:
            assert type(args.finetuning).__module__.startswith("llamafactory.")
        else:
            assert args.finetuning.num_layers == num_layers
            assert (args.finetuning.dropout or []) == ([] if dataset == "hatefulmemes" else [0.2, 0.4, 0.1])
            assert args.finetuning.loss_ratio == [1.0, 1.0] + [1.0] * (path == JOINT_FILE)
            assert args.finetuning.rgcl is (path == JOINT_FILE)
            assert (args.finetuning.problem_type != "binary") is (path in CLASS_FILES)
            assert args.finetuning.classifier_lr == pytest.approx(1e-4)

    def test_nothing_needs_mending(self, parse) -> None:
        from dataclasses import fields

        from llamafactory.hparams import parser

        from llamafactory_ext.arguments import correct_host_arguments

        parse(CLASSIFIER_FILES[0], plugin=True)
        known = {field.name for cls in parser._TRAIN_ARGS for field in fields(cls) if field.init}

        def check(path: Path) -> None:
            values = load(path)
            assert unknown_keys(values, known) == []
            assert correct_host_arguments(dict(values)) == []

        check_each(CLASSIFIER_FILES, check)

    def test_the_parser_does_refuse_an_unknown_key(self, parse) -> None:
        with pytest.raises(ValueError, match="classifier_rate"):
            parse(CLASSIFIER_FILES[0], "classifier_rate=1.0", plugin=True)

    @pytest.mark.parametrize("path", [CLASSIFIER_FILES[0], SFT_FILES[0]], ids=name_of)
    def test_overrides_of_the_header_parse(self, path: Path, parse) -> None:
        overrides = ["per_device_train_batch_size=2", "gradient_accumulation_steps=1", "flash_attn=sdpa"]
        overrides += ["report_to=tensorboard", "run_name=name", "seed=43", "model_name_or_path=folder"]
        overrides += [] if path in SFT_FILES else ["loss_ratio=[0.0,1.0]"]
        args = parse(path, *overrides, plugin=path not in SFT_FILES)
        assert args.training.report_to == ["tensorboard"]
        assert args.model.flash_attn == "sdpa"
        if path not in SFT_FILES:
            assert args.finetuning.loss_ratio == [0.0, 1.0]


class TestSeveralClasses:
    @pytest.mark.parametrize("path", CLASS_FILES, ids=name_of)
    def test_answers_and_question_are_those_of_the_task(self, path: Path, parse) -> None:
        from ra_hmd.data.readers import READERS

        name, task = CLASS_FILES[path]
        chosen = next(one for one in READERS[name].tasks if one.name == task)
        args = parse(path, plugin=True).finetuning
        assert args.problem_type == ("multi_label" if chosen.multi_label else "single_label")
        assert args.expected_answers.words == (chosen.classes if chosen.multi_label else chosen.answers)
        assert args.prompt.template == chosen.prompt
        assert args.problem.outputs == len(chosen.classes)

    @pytest.mark.parametrize("path", CLASS_FILES, ids=name_of)
    def test_the_command_in_the_header_writes_the_data_that_the_file_names(self, path: Path, tmp_path: Path) -> None:
        name, task = CLASS_FILES[path]
        assert f"ra-hmd data to-sharegpt data/imported/{name} --task {task} --output data" in path.read_text()
        options = None
        if name == "harm_c":
            for split in ("train", "val"):
                picture(tmp_path / "images/covid_memes_1.png")
                row = {"id": "covid_memes_1", "image": "covid_memes_1.png", "labels": ["not harmful"], "text": "tea"}
                jsonl(tmp_path / f"{split}.jsonl", [row])
        else:
            columns = ("file_name", "misogynous", "shaming", "stereotype", "objectification", "violence")
            rows = ["\t".join([*columns, "Text Transcription"])]
            for number in range(20):
                picture(tmp_path / f"{number}.jpg")
                rows.append(f"{number}.jpg\t0\t0\t0\t0\t0\ttea at {number}")
            table(tmp_path / "training.csv", "\n".join(rows) + "\n")
            assert "--val-fraction 0.1" in path.read_text()
            options = ImportOptions(val_fraction=0.1)
        imported(name, tmp_path, tmp_path / "imported", options=options)
        files, _ = write_sharegpt(tmp_path / "imported", tmp_path / "data", task=task)
        values = load(path)
        assert {values["dataset"], values["eval_dataset"]} == {file.name for file in files}

    def test_joint_training_has_the_released_settings_of_stage_2(self, parse) -> None:
        args, stage2 = parse(JOINT_FILE, plugin=True).finetuning, Stage2Arguments(train=Path("a"), output_dir=Path("b"))
        assert (args.rgcl_loss, args.rgcl_metrics) == (stage2.loss, stage2.metric)
        asked = (args.rgcl_pseudo_gold_positives, args.rgcl_hard_negatives)
        assert asked == (stage2.pseudo_gold_positives, stage2.hard_negatives)
        assert (args.rgcl_reindex_every, args.rgcl_warmup) == (250, 0)
        plain = load(JOINT_FILE.with_name("hateful_memes_qlora.yaml"))
        joint = load(JOINT_FILE)
        differing = {key for key in joint.keys() | plain.keys() if joint.get(key) != plain.get(key)}
        assert differing == {"loss_ratio", "output_dir", *(key for key in joint if key.startswith("rgcl"))}


DEEPSPEED = {
    "zero2": (2, False, False),
    "zero2_offload": (2, True, False),
    "zero3": (3, False, False),
    "zero3_offload": (3, True, True),
}


class TestDeepSpeed:
    def test_the_folder_holds_these_files(self) -> None:
        folder = ROOT / "configs" / "deepspeed"
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            f"{name}.json" for name in DEEPSPEED
        }

    @pytest.mark.parametrize("name", DEEPSPEED)
    @pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is installed on Linux only")
    def test_transformers_fills_in_every_auto_and_deepspeed_accepts_it(self, name: str, tmp_path: Path) -> None:
        from deepspeed.runtime.config import DeepSpeedConfig
        from transformers import TrainingArguments
        from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

        stage, optimizer, parameters = DEEPSPEED[name]
        raw = json.loads((ROOT / "configs" / "deepspeed" / f"{name}.json").read_text(encoding="utf-8"))
        assert not {"optimizer", "scheduler"} & raw.keys()
        args = TrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to="none", gradient_accumulation_steps=2
        )
        try:
            config = HfTrainerDeepSpeedConfig(raw)
            config.trainer_config_process(args)
            config.trainer_config_finalize(args, SimpleNamespace(config=SimpleNamespace(hidden_size=1536)), 100)
            accepted = DeepSpeedConfig(config.config)
        finally:
            unset_hf_deepspeed_config()
        assert config.mismatches == []
        assert '"auto"' not in json.dumps(config.config)
        assert config.config["gradient_accumulation_steps"] == 2
        assert config.config["bf16"]["enabled"] is True
        zero = accepted.zero_config
        assert zero.stage == stage
        assert (zero.offload_optimizer is not None, zero.offload_param is not None) == (optimizer, parameters)
        assert zero.gather_16bit_weights_on_model_save is (stage == 3)


def test_the_data_registry_names_the_official_files() -> None:
    names = {  # folder, stem, dev, test (datasets page, section 3.2)
        "hatefulmemes": ("FB", "FB", "dev_seen", "test_seen"),
        "harmc": ("HarMeme", "Harmeme", "val", "test"),
        "harmp": ("HarmP", "HarmP", "val", "test"),
        "multioff": ("MultiOFF", "MultiOFF", "dev", "test"),
        "pridemm": ("PrideMM", "PrideMM", "val", "test"),
        "mami": ("MAMI", "MAMI", "val", "test"),
    }
    expected = {}
    for name, (folder, stem, dev, test) in names.items():
        for suffix, split in (("", "train"), ("_dev", dev), ("_test", test)):
            expected[name + suffix] = dataset_info_entry(f"gt/{folder}/sharegpt_{stem}_{split}_instructblip.json")
    shipped = json.loads((ROOT / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    assert {name: shipped[name] for name in expected} == expected
    assert shipped == dataset_info(), "run scripts/make_configs.py"
