"""What is known of a trained head: from its manifest, its stored thresholds and evaluations of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ra_hmd.cards.evaluation_results import limits, read_report
from ra_hmd.cards.render import Markdown, short, table
from ra_hmd.core.artifacts import MANIFEST_NAME, read_json, sha256_file
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import HEAD_NAMES
from ra_hmd.evaluation.provenance import describe_head, describe_store
from ra_hmd.evaluation.report.sections import vote_text
from ra_hmd.models.head import HEAD_WEIGHTS, HeadConfig, read_head_config
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.operating_point import OperatingPoint, read_operating_point

if TYPE_CHECKING:
    from ra_hmd.cards.render import CardMetadata

_KINDS = ("stage1", "stage2", "head", "linear_probe", "zero_shot")
# Named one by one: the host's arguments also hold tokens and paths.
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
    """Variables of `model.md.j2`.

    Args:
        folder: With a head.
        reports: Folders of evaluations of it.
        stated: What the publisher says.

    Raises:
        UserError: no manifest, a report that is not of this head, thresholds of other weights.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} has a head and no {MANIFEST_NAME}, which says how it came about: no card is written."
        )
    manifest = read_json(path)
    if manifest.get("kind") not in _KINDS:
        raise UserError(f"{path} is of kind {manifest.get('kind')!r}; there are cards of {', '.join(_KINDS)}.")
    head, system = read_head_config(folder), describe_head(folder)
    sha256 = sha256_file(folder / HEAD_WEIGHTS)
    decision = read_operating_point(folder)
    found = [entry for report in reports for entry in read_report(report, sha256, head.problem)]
    name = stated.name or short(system["name"])
    official = manifest.get("official")
    origin = manifest.get("init_head")
    return {
        "card_data": _card_data(manifest, stated, name),
        "stated": stated,
        "name": name,
        "system": short(system["name"]),
        "manifest": manifest,
        "head": head,
        "problem": _problem(head),
        "head_sha256": sha256,
        "model": _model(manifest),
        "inputs": manifest.get("inputs"),
        "data": _data(manifest),
        "settings": _settings(manifest),
        "versions": table(["package", "version"], list(manifest.versions.items())),
        "official": official and [short(text) for text in official.get("assumed", [])],
        "origin": None if origin is None else {"place": short(origin.path), "sha256": origin.sha256},
        "notes": [short(text) for text in manifest.get("notes", [])],
        "duration": _duration(folder),
        "decision": None if decision is None else _decision(decision),
        "reports": found,
        "banks": _banks(decision, found),
    }


def _card_data(manifest: Mapping[str, Any], stated: "CardMetadata", name: str) -> Markdown:
    """The hub's metadata, YAML."""
    from huggingface_hub import ModelCardData

    base = _model(manifest)["hub"]
    tags = ["hateful-meme-detection", "ra-hmd", str(manifest["kind"]).replace("_", "-")]
    data = ModelCardData(
        base_model=base,
        language=list(stated.languages) or None,
        library_name="ra-hmd",
        license=stated.licence or "other",
        model_name=name,
        tags=[*tags, *(["peft", "lora"] if manifest.get("finetuning_type") == "lora" else [])],
    )
    return Markdown(data.to_yaml())


def _model(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen or adapted model underneath: `what`, `name`, `hub` (its name there, if it has one), `fingerprint`."""
    encoder = manifest.get("encoder")
    stored = encoder or manifest.get("base_model") or {}
    path = str(stored.get("path") or "")
    features = (manifest.get("features") or {}).get("train") or {}
    fingerprint = stored.get("fingerprint") or (features.get("fingerprint") or {}).get("model")
    # Only an encoder of the hub has a revision; an LMM of the hub has its name for a fingerprint.
    hub = path if stored.get("revision") or str(fingerprint).startswith("hub:") else None
    loading = stored.get("loading") or {}
    return {
        "what": "an image–text encoder" if encoder else "a large multimodal model",
        "name": hub or short(path),
        "hub": hub,
        "revision": hub and (stored.get("revision") or loading.get("model_revision")),
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


def _data(manifest: Mapping[str, Any]) -> Markdown | None:
    """Every set that training saw or chose by, with its fingerprint; None where none is recorded."""
    header = ["role", "data set", "split", "rows", "rows per class", "fingerprint"]
    rows = []
    given = (manifest.get("arguments") or {}).get("data") or {}
    names = {"train": given.get("dataset"), "eval": given.get("eval_dataset")}
    for role, entry in (manifest.get("data") or {}).items():
        named = names.get(role) or role
        classes = ", ".join(f"{label}: {count}" for label, count in (entry.get("rows_per_class") or {}).items())
        rows.append([role, short(named if isinstance(named, str) else ", ".join(named)), "–", entry.get("rows", "–"),
                     classes or "–", entry.get("fingerprint", "–")])  # fmt: skip
    for role, entry in (manifest.get("features") or {}).items():
        if not entry or "path" not in entry:  # a zero-shot head saw no row
            continue
        store = describe_store(entry["path"], entry)
        shots = f", {entry['shots']}-shot" if entry.get("shots") else ""
        rows.append([role, short(store["dataset"]), f"{store['split']}{shots}", entry.get("rows", "–"), "–",
                     (entry.get("fingerprint") or {}).get("data") or "–"])  # fmt: skip
    return table(header, rows) if rows else None


def _settings(manifest: Mapping[str, Any]) -> Markdown | None:
    """Hyper-parameters; None where they are not recorded."""
    arguments = manifest.get("arguments") or {}
    if manifest["kind"] == "stage1":
        pairs = {key: arguments[part].get(key) for part, keys in _STAGE1.items() if part in arguments for key in keys}
        idle = [name for name, key in (("quantization_", "quantization_bit"), ("rgcl_", "rgcl")) if not pairs.get(key)]
        pairs = {key: value for key, value in pairs.items() if not key.startswith(tuple(idle))}
    else:
        pairs = {key: value for key, value in arguments.items() if key not in _PLACES}
    pairs |= {key: manifest.get(key) for key in ("seed", "world_size", "c", "logit_scale", "best_epoch", "step")}
    best = manifest.get("best") or {}
    pairs |= {"kept checkpoint's value": best.get("value") if isinstance(best, Mapping) else None}
    rows = [[key, short(value)] for key, value in pairs.items() if value is not None and value != []]
    return table(["setting", "value"], rows) if rows else None


def _duration(folder: Path) -> float | None:
    """Seconds of training, of a Stage 1 run that still has the trainer's file."""
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
        "dev": f"{short(decision.dev['place'])} (split {decision.dev['split']}, {decision.dev['rows']} memes)",
        "criterion": criterion,
        "vote": vote_text(Voting(**decision.voting)),
    }


def _banks(decision: OperatingPoint | None, reports: Sequence[Mapping[str, Any]]) -> Markdown | None:
    """States of the banks that voted; None where no file names one."""
    used = [] if decision is None else [("choosing thresholds", decision.bank)]
    used += [(f"evaluation on {entry['title']}", entry["bank_state"]) for entry in reports]
    rows = [[what, short(bank["place"]), bank.get("version", "–"), bank["sha256"]] for what, bank in used]
    return table(["voted in", "bank", "version", "sha256"], rows) if rows else None
