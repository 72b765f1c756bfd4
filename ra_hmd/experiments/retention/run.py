"""What tuning cost a model, measured on pictures that the tool draws (`ra-hmd retention drawn`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ra_hmd.core.artifacts import MANIFEST_NAME, plain, write_json, write_jsonl
from ra_hmd.core.choices import DType
from ra_hmd.core.manifests import RetentionManifest, write_manifest
from ra_hmd.experiments.parts import Parts
from ra_hmd.experiments.retention.config import RetentionSettings
from ra_hmd.experiments.retention.measure import PairedModel
from ra_hmd.experiments.retention.pictures import Item, draw_memes, draw_questions, fingerprint_items
from ra_hmd.experiments.retention.report import write_retention_report
from ra_hmd.experiments.retention.summary import summarise
from ra_hmd.features.compatibility import check_output
from ra_hmd.models.checkpoint import Run
from ra_hmd.models.generation.chat import check_run_adapter
from ra_hmd.models.meme_model import MemeModel

_PART = 40  # questions per part; an interruption loses one part at most
_FORMAT = 1  # format of the parts


def retention(
    run: Run,
    output: str | Path,
    settings: RetentionSettings | None = None,
    *,
    dtype: DType = "auto",
    device: str | torch.device | None = None,
    show: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Compare a tuned model with its base model, which is the same model with the adapter switched off.

    Writes retention.json, retention.md, retention.png, answers.jsonl and a manifest. Finished parts are kept in
    `<output>/parts`: an interrupted run continues, and ranks of torchrun share the parts.

    Args:
        run: A run with an adapter.
        output: Output folder.
        settings: Settings of pictures, questions and gate.
        dtype: Data type of the computation.
        device: Device of the LMM; default: the one that accelerate selects.
        show: Whether to show a progress bar.
        command: Command line for the records.

    Returns:
        Content of retention.json (see `summarise`); on ranks that do not write, an empty dictionary.

    Raises:
        UserError: a run without an adapter, an output folder of another command, parts of another run.
    """
    settings, output = settings or RetentionSettings(), Path(output)
    check_output(output, "retention")
    check_run_adapter(run, adapter=False)
    items = draw_questions(settings.pictures, settings.seed) + draw_memes(settings.memes, settings.seed)
    numbers = list(range(len(items)))
    stated = plain({
        "format": _FORMAT,
        "model": run.fingerprint() | {"head": None},
        "pictures": fingerprint_items(items),
        "max_new_tokens": settings.max_new_tokens,
        "dtype": dtype,
    })  # fmt: skip
    plan = [numbers[start : start + _PART] for start in range(0, len(items), _PART)]
    parts, state = Parts(output / "parts", stated, plan), PartialState()
    with state.main_process_first():
        parts.check()
        parts.begin()
    _measure_missing(run, items, parts, state, settings, dtype, device, show=show)
    if parts.missing():  # other ranks still measure
        return {}
    rows = parts.rows([item.id for item in items])
    result = summarise(rows, settings)
    manifest = RetentionManifest.new(
        "retention",
        command=command,
        arguments=plain(settings.model_dump() | {"checkpoint": run.folder, "dtype": dtype}),
        seed=settings.seed,
        fingerprint=stated,
        items=len(items),
        gate=result["gate"],
        notes=result["notes"],
    )
    write_jsonl(output / "answers.jsonl", rows)
    write_json(output / "retention.json", result)
    write_retention_report(result, settings, run, command, output)
    write_manifest(output / MANIFEST_NAME, manifest)
    return result


def _measure_missing(
    run: Run,
    items: list[Item],
    parts: Parts,
    state: PartialState,
    settings: RetentionSettings,
    dtype: DType,
    device: str | torch.device | None,
    *,
    show: bool,
) -> None:
    """Measure this rank's missing parts."""
    todo = parts.missing_of(state)
    if not todo:
        return
    model = MemeModel(run, torch.device(device) if device is not None else state.device, dtype)
    pair = PairedModel(model, settings)

    def measured(part: Sequence[int]) -> list[dict[str, Any]]:
        return pair.measure([items[row] for row in part])

    parts.complete(todo, measured, "Asking", "questions", show=show and state.is_main_process)
