"""Write the tables of docs/families.md: a family × step table from a run of `tests/e2e/test_families.py`, and the
real-size recipes from their architectures.

    python scripts/make_families_table.py           # run the suite (minutes), write both tables
    python scripts/make_families_table.py --sizes   # only the table of recipes, without running the suite

A cell of the first table is a check mark where the tests of that family and step pass, or the sentence with which the
step is refused, as the test recorded it. Where a test fails, nothing is written.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import make_configs
import torch
import transformers
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model.patcher import patch_processor
from PIL import Image
from transformers import AutoModelForImageTextToText

from ra_hmd.models.families import FAMILIES, Family, Published

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "families.md"
SUITE = "tests/e2e/test_families.py"
PASSED = "✓"
UNMEASURED = "not measured here"
SIDE = 768  # pixels; `image_max_pixels` of the recipes is the square of it
RANK = 128  # `lora_rank` of the recipes


class Recorder:
    """Pytest plugin that keeps what the tests of the suite record.

    Attributes:
        cells: Family → step → check mark or refusal.
        failed: Names of tests that did not pass.
    """

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Called by pytest for setup, call and teardown of each test."""
        if not report.passed:
            self.failed.append(f"{report.nodeid} ({report.when}: {report.outcome})")
        elif report.when == "call":
            recorded = dict(report.user_properties)
            cells = self.cells.setdefault(recorded["family"], {})
            refusal = recorded.get("refusal")
            cells[recorded["step"]] = refusal or cells.get(recorded["step"], PASSED)


def run_suite() -> dict[str, dict[str, str]]:
    """Family → step → cell, of a run of the suite.

    Raises:
        SystemExit: A test did not pass, or a family lacks a step.
    """
    import pytest

    recorder = Recorder()
    code = pytest.main([str(ROOT / SUITE), "-q", "-p", "no:cacheprovider"], plugins=[recorder])
    if code or recorder.failed or not recorder.cells:
        sys.exit("\n".join(["Nothing was written: a cell needs a test that passes.", *recorder.failed]))
    steps = {step for cells in recorder.cells.values() for step in cells}
    incomplete = [family for family, cells in recorder.cells.items() if cells.keys() != steps]
    if incomplete:
        sys.exit(f"Nothing was written: {', '.join(incomplete)} lack a step of {', '.join(sorted(steps))}.")
    return recorder.cells


def steps_table(cells: dict[str, dict[str, str]]) -> str:
    """The family × step table. Refusals stand below it, by number."""
    steps = list(next(iter(cells.values())))
    refusals: list[str] = []
    rows = []
    for family, found in cells.items():
        row = [f"`{family}`"]
        for step in steps:
            if found[step] == PASSED:
                row.append(PASSED)
                continue
            if found[step] not in refusals:
                refusals.append(found[step])
            row.append(f"refused ({refusals.index(found[step]) + 1})")
        rows.append(row)
    table = as_table(["family", *steps], rows)
    notes = [f"{number}. {sentence}" for number, sentence in enumerate(refusals, start=1)]
    return "\n".join([table, *(["", *notes] if notes else [])])


def sizes_table() -> str:
    """Recipes of `configs/stage1`: what their architectures have, built on the meta device from published sizes."""
    rows = []
    for recipe in make_configs.MODELS:
        family, published = published_model(recipe.hub)
        config = published.config()
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        text = config.get_text_config()
        projections = [
            module for module in family.decoder_layers(model).modules() if isinstance(module, torch.nn.Linear)
        ]
        lora = RANK * sum(module.in_features + module.out_features for module in projections)
        rows.append(
            [
                f"`configs/stage1/{recipe.folder}`",
                f"`{recipe.hub}`",
                f"`{recipe.template}`",
                f"{text.num_hidden_layers} × {text.hidden_size:,}",
                f"{sum(parameter.numel() for parameter in model.parameters()) / 1e9:.2f}",
                f"{lora / 1e6:.0f}",
                str(image_tokens(family, recipe.template)),
                f"`{recipe.attention}`",
                "yes" if recipe.liger else "no",
                UNMEASURED,
            ]
        )
    names = ["recipes", "hub", "template", "layers × H", "parameters, 10⁹", f"LoRA of rank {RANK}, 10⁶"]
    return as_table([*names, f"tokens of {SIDE}² pixels", "`flash_attn`", "Liger", "GPU memory, speed"], rows)


def published_model(hub: str) -> tuple[Family, Published]:
    """Family and published sizes of a model on the hub."""
    return next(
        (family, published)
        for family in FAMILIES.values()
        for published in family.published
        if published.repository == hub
    )


def image_tokens(family: Family, template: str) -> int:
    """Tokens that the host puts in the place of an image of `SIDE`² pixels, by a processor of published sizes."""
    tiny = family.tiny_processor()
    image_processor, arguments = published_processor(family.name)
    arguments |= {"tokenizer": tiny.tokenizer, "image_processor": image_processor, "chat_template": tiny.chat_template}
    if hasattr(tiny, "video_processor"):
        arguments["video_processor"] = tiny.video_processor
    processor = type(tiny)(**arguments)
    patch_processor(processor, tiny.tokenizer, ModelArguments(model_name_or_path="-", image_max_pixels=SIDE**2))
    plugin = get_template_and_fix_tokenizer(tiny.tokenizer, DataArguments(template=template)).mm_plugin
    image = Image.new("RGB", (SIDE, SIDE))
    (message,) = plugin.process_messages([{"role": "user", "content": "<image>"}], [image], [], [], processor)
    ids = tiny.tokenizer.encode(message["content"], add_special_tokens=False)
    return ids.count(family.tiny_config(tiny.tokenizer, 64, 2).image_token_id)


def published_processor(family: str) -> tuple[Any, dict[str, Any]]:
    """Image processor of the recipes' models, and what their processor has besides."""
    if family.startswith("qwen"):
        patch = {"patch_size": 14, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}}
        if family not in ("qwen2_vl", "qwen2_5_vl"):
            patch = {"patch_size": 16, "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}}
        return transformers.Qwen2VLImageProcessor(**patch), {}
    if family == "llava":
        size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
        arguments = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return transformers.CLIPImageProcessor(**size), arguments
    if family == "internvl":
        return transformers.GotOcr2ImageProcessor(size={"height": 448, "width": 448}), {"image_seq_length": 256}
    return transformers.Gemma3ImageProcessor(size={"height": 896, "width": 896}), {"image_seq_length": 256}


def as_table(names: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, name: str, table: str) -> str:
    """`page` with another table between its markers `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    found = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(found.findall(page)) != 1:
        sys.exit(f"{PAGE.name} has no place for the table {name!r}.")
    return found.sub(lambda _: begin + table + end, page)


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/families.md.")
    parser.add_argument("--sizes", action="store_true", help="only the table of recipes; the suite is not run")
    only_sizes = parser.parse_args().sizes
    page = replaced(PAGE.read_text(encoding="utf-8"), "recipes", sizes_table())
    if not only_sizes:
        page = replaced(page, "steps", steps_table(run_suite()))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
