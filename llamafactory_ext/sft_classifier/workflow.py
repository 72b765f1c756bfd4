"""Stage `sft-classifier` from parsed arguments to saved run (mirrors the host's `train/sft/workflow.py`)."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
from llamafactory.extras import logging
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.extras.misc import calculate_tps
from llamafactory.extras.ploting import plot_loss
from llamafactory.model import load_config, load_model, load_tokenizer
from llamafactory.train.trainer_utils import create_modelcard_and_push
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from llamafactory_ext.host_arguments import REFUSED_ARGUMENTS
from llamafactory_ext.launchers import STAGE
from llamafactory_ext.sft_classifier import experts
from llamafactory_ext.sft_classifier.checks import check_attention, check_language_head, check_training
from llamafactory_ext.sft_classifier.guides import Guides
from llamafactory_ext.sft_classifier.metric import compute_metrics
from llamafactory_ext.sft_classifier.nodes import check_nodes
from llamafactory_ext.sft_classifier.records import describe, load_records
from llamafactory_ext.sft_classifier.resuming import checkpoint_to_resume
from llamafactory_ext.sft_classifier.reuse import check_resumed
from llamafactory_ext.sft_classifier.trainer import ClassifierTrainer
from llamafactory_ext.sft_classifier.weights import load_weights
from ra_hmd.core.artifacts import fingerprint_model, plain
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import Stage1Manifest, write_manifest
from ra_hmd.core.package_versions import bad_pairs
from ra_hmd.data.images import load_image
from ra_hmd.models.checkpoint import adapter_digest
from ra_hmd.models.classifier import ReadoutConfig, answer_spans, attach_head
from ra_hmd.models.experts.settings import ExpertSettings
from ra_hmd.models.head import HeadConfig, MemeHead, has_head
from ra_hmd.models.stage1_config import LOADING
from ra_hmd.models.tokenization import InputSettings, MemeEncoder, check_family
from ra_hmd.models.unlisted_family import check_unlisted

if TYPE_CHECKING:
    from llamafactory.hparams import DataArguments, GeneratingArguments, ModelArguments, TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

logger = logging.get_logger(f"llamafactory.{__name__}")  # below the host's root, whose handler prints it


@dataclass
class ClassifierCollator(SFTDataCollatorWith4DAttentionMask):
    """Adds to the host's batch: class_labels [B] (multi-label: [B, C] of 0 and 1), sample_index [B], answer_positions
    [B, A], answer_labels [B, A]; of records with clusters also cluster_ids [B].

    `labels` [B, T] is left out: the loss is computed at the answer positions alone. Needs `model`, for M-RoPE.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Collate rows as `records.load_records` makes them."""
        features = [dict(feature) for feature in features]
        extras = {key: [feature.pop(key) for feature in features] for key in ("class_label", "sample_index")}
        clusters = [feature.pop("cluster_id") for feature in features if "cluster_id" in feature]
        for feature in features:
            feature.pop("sample_id", None)
            # Opened here: the host would see other pixels of transparent, deep and turned images than we do later.
            feature["images"] = [load_image(path) for path in feature["images"] or ()]
        batch = super().__call__(features)
        batch["answer_positions"], batch["answer_labels"] = answer_spans(batch.pop("labels"))
        batch["class_labels"] = torch.tensor(extras["class_label"])
        batch["sample_index"] = torch.tensor(extras["sample_index"])
        if clusters:
            batch["cluster_ids"] = torch.tensor(clusters)
        return batch


def run_sft_classifier(
    model_args: "ModelArguments",
    data_args: "DataArguments",
    training_args: "TrainingArguments",
    finetuning_args: "ClassifierFinetuningArguments",
    generating_args: "GeneratingArguments",
    callbacks: list[TrainerCallback] | None = None,
    *,
    resume_asked: bool = True,
) -> None:
    """Train, evaluate and predict, as the arguments ask.

    `resume_asked` tells whether `resume_from_checkpoint` is the user's; else the host found a checkpoint itself.

    Raises:
        UserError: before any training, for settings and records that cannot be honoured.
    """
    _check_environment(model_args)
    guides = Guides.open(finetuning_args)
    config = load_config(model_args)
    check_family(config, data_args.template)
    check_attention(config.model_type, model_args.flash_attn)
    experts.check_experts(config, model_args, finetuning_args)
    settings = input_settings(model_args, data_args, finetuning_args, guides)
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    reader = _reader(config, template, tokenizer_module, settings, fused=bool(model_args.enable_liger_kernel))
    parsed = (model_args, data_args, training_args, finetuning_args)
    records = load_records(template, *parsed, tokenizer_module, settings, guides)
    if training_args.do_train:
        check_training(records, data_args, training_args, finetuning_args)
        name, revision = model_args.model_name_or_path, model_args.model_revision
        check_language_head(config, name, revision, finetuning_args.loss_weights[0])
    head_config = finetuning_args.head_config(config.get_text_config().hidden_size)
    expert_settings = experts.settings_of(finetuning_args, guides)
    manifest = _manifest(*parsed, settings, head_config, expert_settings, records)
    check_nodes(training_args)
    checkpoint = checkpoint_to_resume(training_args, asked=resume_asked)
    if checkpoint is not None:
        check_resumed(checkpoint, manifest)
    build = partial(_build_model, tokenizer_module["tokenizer"], model_args, training_args, finetuning_args)
    model = build(checkpoint, expert_settings, head_config, reader)

    trainer = ClassifierTrainer(
        manifest=manifest,
        guides=guides,
        model=model,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=_collator(template, model, model_args, tokenizer_module, trains=training_args.do_train),
        callbacks=callbacks,
        compute_metrics=partial(compute_metrics, objective=finetuning_args.objective),
        **records,
        **tokenizer_module,
    )
    if training_args.do_train:
        _train(trainer, records, checkpoint)
    elif trainer.is_world_process_zero():
        write_manifest(Path(training_args.output_dir) / "evaluation_manifest.json", trainer.manifest)
    if training_args.do_eval:
        _evaluate(trainer)
    if training_args.do_predict:
        _predict(trainer, records["eval_dataset"])
    create_modelcard_and_push(trainer, model_args, data_args, training_args, finetuning_args)


def _collator(
    template: Any, model: Any, model_args: "ModelArguments", tokenizer_module: dict[str, Any], *, trains: bool
) -> ClassifierCollator:
    return ClassifierCollator(
        template=template,
        model=model,
        pad_to_multiple_of=8 if trains else None,
        label_pad_token_id=IGNORE_INDEX,
        attn_implementation=getattr(model.config, "_attn_implementation", None),
        compute_dtype=model_args.compute_dtype,
        **tokenizer_module,
    )


def _check_environment(model_args: "ModelArguments") -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes", "y", "on", "t"):
        # By accelerate's own configuration: no argument says so.
        raise UserError(
            f"ACCELERATE_USE_FSDP={os.environ['ACCELERATE_USE_FSDP']}, as `accelerate launch` sets it for FSDP, which "
            f"stage {STAGE} does not support: {REFUSED_ARGUMENTS['fsdp']}."
        )
    raise_all(bad_pairs(vars(model_args)), "Packages are installed that do not work together")


def _build_model(
    tokenizer: Any,
    model_args: "ModelArguments",
    training_args: "TrainingArguments",
    finetuning_args: "ClassifierFinetuningArguments",
    checkpoint: Path | None,
    expert_settings: ExpertSettings | None,
    head_config: HeadConfig,
    reader: ReadoutConfig,
) -> Any:
    """The LMM with experts and head: those of a checkpoint, of the run in the arguments, or new ones.

    Raises:
        UserError: there should be a trained head, or trained experts, and there are none; nothing is loaded then.
    """
    trains, seed, adapters = training_args.do_train, training_args.seed, model_args.adapter_name_or_path
    head_from = _head_source(model_args, training_args, checkpoint)
    experts_from = experts.expert_source(adapters, checkpoint, trains=trains, wanted=finetuning_args.llm_moe)
    model = _load_lmm(tokenizer, model_args, finetuning_args, trains)
    if expert_settings is not None:
        experts.attach(model, expert_settings, experts_from, seed, trains=trains, pure_bf16=finetuning_args.pure_bf16)
    _attach(model, head_config, reader, head_from, seed)
    return model


def _load_lmm(tokenizer: Any, model_args: "ModelArguments", finetuning_args: Any, trainable: bool) -> Any:
    """The host's model. For evaluation alone the adapter is attached, not merged: merging rounds it in bfloat16."""
    adapters = model_args.adapter_name_or_path
    if trainable or not adapters or finetuning_args.finetuning_type != "lora":
        model = load_model(tokenizer, model_args, finetuning_args, trainable)
    else:
        bare = type(model_args).copyfrom(model_args, adapter_name_or_path=",".join(adapters[:-1]) or None)
        model = load_model(tokenizer, bare, finetuning_args, trainable)
        model_args.compute_dtype = bare.compute_dtype
        model = PeftModel.from_pretrained(model, adapters[-1])
    if getattr(model, "is_quantized", False) and not trainable:
        model._hf_peft_config_loaded = True  # as the host does, so that a quantised model may predict
    return model


def input_settings(
    model_args: "ModelArguments",
    data_args: "DataArguments",
    finetuning_args: "ClassifierFinetuningArguments",
    guides: Guides,
) -> InputSettings:
    """Settings that the tokens and the hidden state of a meme depend on, for the manifest."""
    return InputSettings(
        template=data_args.template,
        cutoff_len=data_args.cutoff_len,
        image_max_pixels=model_args.image_max_pixels,
        image_min_pixels=model_args.image_min_pixels,
        default_system=data_args.default_system,
        prompt_template=finetuning_args.prompt_template,
        positive_answer=finetuning_args.positive_answer,
        negative_answer=finetuning_args.negative_answer,
        embed_mode=finetuning_args.embed_mode,
        embed_layer=finetuning_args.embed_layer,
        problem_type=finetuning_args.problem_type,
        answers=tuple(finetuning_args.answers or ()),
        fold_captions=finetuning_args.fold_captions,
        **guides.digests,
    )


def _reader(
    config: Any, template: Any, tokenizer_module: dict[str, Any], settings: InputSettings, *, fused: bool
) -> ReadoutConfig:
    encoder = MemeEncoder(template, **tokenizer_module, prompt=settings.prompt, cutoff_len=settings.cutoff_len)
    check_unlisted(encoder, config, settings.template, settings.expected_answers)
    if settings.problem.kind == "multi_label":
        logger.info_rank0("LMH has no score: an answer lists any number of classes, and no one token tells them.")
    answer_ids = tuple(encoder.answer_token_ids(settings.expected_answers))
    return ReadoutConfig(answer_ids, settings.embed_mode, settings.embed_layer, fused)


def _attach(model: Any, config: HeadConfig, reader: ReadoutConfig, source: Path | None, seed: int) -> None:
    """Attach a head: the one saved at `source`, or a new one that depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):  # the head is made on the CPU
        torch.default_generator.manual_seed(seed)
        head = MemeHead(config)
    attach_head(model, head, reader)
    if source is not None:
        load_weights(head, source)
        logger.info_rank0(f"Loaded the head from {source}.")


def _head_source(model_args: "ModelArguments", training_args: "TrainingArguments", resume: Path | None) -> Path | None:
    """The folder whose head to load: the checkpoint resumed from, else the adapter's or the model's own."""
    adapters = model_args.adapter_name_or_path
    candidates = [resume] if resume else [Path(adapters[-1] if adapters else model_args.model_name_or_path)]
    found = next((folder for folder in candidates if has_head(folder)), None)
    if found is None and (resume is not None or not training_args.do_train):
        raise UserError(
            f"{candidates[0]} has no trained head (head.safetensors, head.json); evaluating with a new, random one "
            f"would be meaningless. Give `adapter_name_or_path` of a {STAGE} run, or set `do_train: true`."
        )
    return found


def _manifest(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    settings: InputSettings,
    head_config: HeadConfig,
    expert_settings: ExpertSettings | None,
    records: dict[str, Any],
) -> Stage1Manifest:
    parts = {"model": model_args, "data": data_args, "training": training_args, "finetuning": finetuning_args}
    merged = _merged_adapters(model_args, finetuning_args)
    optional = {} if expert_settings is None else {"experts": plain(expert_settings.model_dump())}
    described: dict[str, Any] = {}
    for name, dataset in records.items():
        parts_of = dataset if isinstance(dataset, dict) else {name.removesuffix("_dataset"): dataset}
        described |= {key: describe(value) for key, value in parts_of.items()}
    return Stage1Manifest.new(
        base_model={
            "path": model_args.model_name_or_path,
            "fingerprint": fingerprint_model(model_args.model_name_or_path),
            "loading": plain({name: getattr(model_args, name) for name in LOADING}),
            "adapters": merged,
            "adapter_digests": [adapter_digest(adapter) for adapter in merged],
        },
        finetuning_type=finetuning_args.finetuning_type,
        seed=training_args.seed,
        world_size=training_args.world_size,
        inputs=plain(settings.to_dict()),
        head=plain(head_config.model_dump()),
        data=described,
        arguments={key: plain(value.to_dict()) for key, value in parts.items()},
        **optional,
    )


def _merged_adapters(model_args: Any, finetuning_args: Any) -> list[str]:
    """Adapters that the host merges into the base model before it trains one; the last is trained on, unless new."""
    adapters = model_args.adapter_name_or_path or []
    return adapters if finetuning_args.create_new_adapter else adapters[:-1]


def _train(trainer: ClassifierTrainer, records: dict[str, Any], checkpoint: Path | None) -> None:
    trainer.finite.checkpoint = "" if checkpoint is None else str(checkpoint)
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()
    if trainer.finetuning_args.include_effective_tokens_per_second:
        tokens = calculate_tps(records["train_dataset"], result.metrics, stage="sft")
        result.metrics["effective_tokens_per_sec"] = tokens
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    trainer.save_state()
    if trainer.is_world_process_zero() and trainer.finetuning_args.plot_loss:
        evaluated = records.get("eval_dataset")
        prefixes = [f"eval_{name}" for name in evaluated] if isinstance(evaluated, dict) else ["eval"]
        names = ("loss", "lrc_auroc", "lmh_auroc", "lrc_accuracy", "lmh_accuracy")
        keys = ["loss", "lm_loss", "lrc_loss", "rgcl_loss", "balance_loss", "routing_entropy"]
        keys += [f"{prefix}_{name}" for prefix in prefixes for name in names]
        logged = set().union(*trainer.state.log_history)
        plot_loss(trainer.args.output_dir, keys=[key for key in keys if key in logged])


def _evaluate(trainer: ClassifierTrainer) -> None:
    metrics = trainer.evaluate(metric_key_prefix="eval")
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def _predict(trainer: ClassifierTrainer, datasets: Any) -> None:
    folder = Path(trainer.args.output_dir)
    several = isinstance(datasets, dict)
    for name, dataset in (datasets if several else {"": datasets}).items():
        prefix = f"predict_{name}" if several else "predict"
        output = trainer.predict(dataset, metric_key_prefix=prefix)
        trainer.log_metrics(prefix, output.metrics)
        trainer.save_metrics(prefix, output.metrics)
        trainer.write_predictions(folder / f"predictions{f'_{name}' if several else ''}.jsonl", dataset, output)
