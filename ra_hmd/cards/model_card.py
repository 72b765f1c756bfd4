"""Facts for the card of a trained head, from its manifest, its thresholds and evaluations of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.cards.evaluation_results import limits, read_report
from ra_hmd.cards.model_index import eval_results
from ra_hmd.cards.render import Markdown, short, table
from ra_hmd.core.artifacts import MANIFEST_NAME, read_json, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import HEAD_NAMES
from ra_hmd.core.manifests import (
    BankReference,
    HeadRunManifest,
    Stage1Manifest,
    ZeroShotManifest,
    kinds_of,
    read_folder_manifest,
)
from ra_hmd.evaluation.provenance import describe_head, describe_store
from ra_hmd.evaluation.report.sections import vote_text
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, read_head_config
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.operating_point import OperatingPoint, read_operating_point

if TYPE_CHECKING:
    from ra_hmd.cards.render import CardMetadata

# An explicit list, as the host's arguments also hold tokens and paths.
_STAGE1 = {
    "model": ("quantization_bit", "quantization_type", "flash_attn", "enable_liger_kernel"),
    "data": ("max_samples",),
    "training": (
        "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "lr_scheduler_type", "warmup_ratio", "warmup_steps", "optim", "weight_decay", "max_grad_norm", "bf16", "fp16",
        "gradient_checkpointing", "deepspeed", "seed", "data_seed", "load_best_model_at_end", "metric_for_best_model",
    ),
    "finetuning": (
        "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "freeze_vision_tower",
        "freeze_multi_modal_projector", "freeze_language_model", "loss_ratio", "classifier_lr", "classification_loss",
        "focal_gamma", "class_weights", "class_balance_beta", "overlong_caption", "rgcl", "rgcl_loss",
        "rgcl_hard_negatives", "rgcl_pseudo_gold_positives", "rgcl_temperature", "rgcl_margin",
    ),
}  # fmt: skip
_PLACES = ("train", "dev", "output_dir", "init_head", "k_shot", "object_words", "sweep")
_RESULTS = "train_results.json"


def model_facts(folder: Path, reports: Sequence[str | Path], stated: "CardMetadata") -> dict[str, Any]:
    """Variables of `model_card.md.j2`.

    Args:
        folder: Folder with a head.
        reports: Folders of evaluations of the head.
        stated: Metadata from the publisher.

    Raises:
        UserError: no manifest, a report that is not of this head, thresholds of other weights.
    """
    manifest = read_folder_manifest(folder)
    if manifest is None:
        raise UserError(
            f"{folder} has a head and no {MANIFEST_NAME}, which says how it came about: no card is written."
        )
    if not isinstance(manifest, HeadRunManifest):
        raise UserError(
            f"{folder / MANIFEST_NAME} is of kind {manifest.kind!r}; there are cards of "
            f"{', '.join(kinds_of(HeadRunManifest))}."
        )
    head, system = read_head_config(folder), describe_head(folder)
    sha256 = sha256_file(folder / HEAD_WEIGHTS)
    decision = read_operating_point(folder)
    found = [entry for report in reports for entry in read_report(report, sha256, head.problem)]
    name = stated.name or short(system["name"])
    official = manifest.official if isinstance(manifest, Stage1Manifest) else None
    origin = manifest.init_head
    return {
        "card_data": _card_data(manifest, stated, name, found),
        "stated": stated,
        "name": name,
        "system": short(system["name"]),
        "manifest": manifest,
        "head": head,
        "problem": _problem(head),
        "head_sha256": sha256,
        "model": _model(manifest, stated),
        "tuning": manifest.finetuning_type if isinstance(manifest, Stage1Manifest) else None,
        "world_size": manifest.world_size if isinstance(manifest, Stage1Manifest) else None,
        "sentences": manifest.prompts if isinstance(manifest, ZeroShotManifest) else {},
        "inputs": manifest.inputs,
        "data": _data(manifest),
        "settings": _settings(manifest),
        "versions": table(["package", "version"], list(manifest.versions.items())),
        "official": None if official is None else [short(text) for text in official.assumed],
        "origin": None if origin is None else {"place": short(origin.path), "sha256": origin.sha256},
        "notes": [short(text) for text in manifest.notes],
        "duration": _duration(folder),
        "decision": None if decision is None else _decision(decision),
        "reports": found,
        "banks": _banks(decision, found),
    }


def _card_data(
    manifest: HeadRunManifest, stated: "CardMetadata", name: str, reports: Sequence[Mapping[str, Any]]
) -> Markdown:
    """Metadata of the hub, as YAML; `model-index` is among them where there are evaluations."""
    from huggingface_hub import ModelCardData

    base = _model(manifest, stated)["hub"]
    tags = ["hateful-meme-detection", "ra-hmd", manifest.kind.replace("_", "-")]
    lora = isinstance(manifest, Stage1Manifest) and manifest.finetuning_type == "lora"
    data = ModelCardData(
        base_model=base,
        language=list(stated.languages) or None,
        library_name="ra-hmd",
        license=stated.licence or "other",
        model_name=name,
        eval_results=eval_results(reports) or None,
        tags=[*tags, *(["peft", "lora"] if lora else [])],
    )
    return Markdown(data.to_yaml())


def _model(manifest: HeadRunManifest, stated: "CardMetadata") -> dict[str, Any]:
    """The model that makes the features: `what`, `name`, `hub` (name on the hub), `revision`, `fingerprint`, `bits`."""
    encoder, lmm, path = manifest.encoder, manifest.base_model, manifest.model_path
    fingerprint = manifest.model_fingerprint
    loading = lmm.loading if lmm is not None and encoder is None else {}
    revision = None if encoder is None else encoder.revision
    # Only an encoder of the hub has a revision; an LMM of the hub has its name for a fingerprint.
    hub = path if revision or str(fingerprint).startswith("hub:") else stated.base
    return {
        "what": "a large multimodal model" if encoder is None else "an image–text encoder",
        "name": hub or short(path),
        "hub": hub,
        "revision": hub and (revision or loading.get("model_revision")),
        "fingerprint": fingerprint,
        "bits": loading.get("quantization_bit"),
    }


def _problem(head: HeadConfig) -> str:
    problem = head.problem
    return {
        "binary": "between two classes; label 1 is the positive one",
        "single_label": f"which one of {problem.outputs} classes a meme has",
        "multi_label": f"which of {problem.outputs} classes a meme has, any number of them",
    }[problem.kind]


def _data(manifest: HeadRunManifest) -> Markdown | None:
    """Sets that were trained on or chosen by, with their fingerprints; None where none is recorded."""
    header = ["role", "data set", "split", "rows", "rows per class", "fingerprint"]
    rows: list[list[Any]] = []
    stage1 = manifest if isinstance(manifest, Stage1Manifest) else Stage1Manifest(kind="stage1")
    for role, data in stage1.data.items():
        argument = {"train": "dataset", "eval": "eval_dataset"}.get(role, role)
        named = stage1.argument("data", argument) or role
        classes = ", ".join(f"{label}: {count}" for label, count in data.rows_per_class.items())
        rows.append([role, short(named if isinstance(named, str) else ", ".join(named)), "–", data.rows, classes,
                     data.fingerprint])  # fmt: skip
    for role, store in manifest.features.items():
        if store.path is None:  # a zero-shot head saw no row
            continue
        described = describe_store(store.path, store)
        shots = f", {manifest.shots}-shot" if store.k_shot and manifest.shots else ""
        rows.append([role, short(described["dataset"]), f"{described['split']}{shots}", store.rows, "",
                     store.fingerprint.get("data")])  # fmt: skip
    rows = [["–" if cell in (None, "") else cell for cell in row] for row in rows]
    return table(header, rows) if rows else None


def _settings(manifest: HeadRunManifest) -> Markdown | None:
    """Table of the hyper-parameters; None where none is recorded."""
    if isinstance(manifest, Stage1Manifest):
        pairs = {key: manifest.argument(part, key) for part, keys in _STAGE1.items() for key in keys}
        idle = [name for name, key in (("quantization_", "quantization_bit"), ("rgcl_", "rgcl")) if not pairs.get(key)]
        pairs = {key: value for key, value in pairs.items() if not key.startswith(tuple(idle))}
    else:
        pairs = {key: value for key, value in manifest.arguments.items() if key not in _PLACES}
    shown = ("seed", "world_size", "c", "logit_scale", "best_epoch", "step")
    pairs |= {key: getattr(manifest, key, None) for key in shown}
    best = manifest.best if isinstance(manifest, Stage1Manifest) else None
    pairs |= {"kept checkpoint's value": None if best is None else best.value}
    rows = [[key, short(value)] for key, value in pairs.items() if value is not None and value != []]
    return table(["setting", "value"], rows) if rows else None


def _duration(folder: Path) -> float | None:
    """Seconds of training, for a Stage 1 run with the trainer's file of results."""
    path = folder / _RESULTS
    return read_json(path).get("train_runtime") if path.is_file() else None


def _decision(decision: OperatingPoint) -> dict[str, Any]:
    rows = []
    for head, rule in decision.rules.items():
        values = decision.values[head]
        rows.append([HEAD_NAMES[head], limits(rule.thresholds.tolist(), decision.problem), rule.calibration.kind,
                     f"{values['official']:.3f}", f"{values['chosen']:.3f}"])  # fmt: skip
    criterion = decision.criterion
    header = ["head", "threshold", "calibration", f"{criterion} on dev, official", f"{criterion} on dev, chosen"]
    return {
        "table": table(header, rows),
        "dev": f"{short(decision.dev.place)} (split {decision.dev.split}, {decision.dev.rows} memes)",
        "criterion": criterion,
        "vote": vote_text(Voting(**decision.voting)),
    }


def _banks(decision: OperatingPoint | None, reports: Sequence[Mapping[str, Any]]) -> Markdown | None:
    """Table of the banks that voted; None where no file states one."""
    used: list[tuple[str, BankReference]] = []
    if decision is not None:
        used = [("choosing thresholds", decision.bank)]
    used += [(f"evaluation on {entry['title']}", entry["bank_state"]) for entry in reports]
    rows = [[what, short(bank.place), bank.version or "–", bank.sha256] for what, bank in used]
    return table(["voted in", "bank", "version", "sha256"], rows) if rows else None
