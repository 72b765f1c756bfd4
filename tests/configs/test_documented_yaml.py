"""Every YAML block of the documentation holds keys and values that the program takes that reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from config_files import STAGE1
from documented import Block, blocks

from ra_hmd.cli.app import app
from ra_hmd.cli.options_file import read_options
from ra_hmd.clusters.guidance_files import read_texts
from ra_hmd.core.config import load_yaml
from ra_hmd.experiments.cross_eval.config import CrossEvalArguments
from ra_hmd.experiments.robustness.config import RobustnessSettings

RECIPE = STAGE1 / "qwen2_5_vl_7b" / "hateful_memes_qlora.yaml"


def of_serve(path: Path, _: Any) -> None:
    read = read_options(path, typer.main.get_command(app).commands["serve"].params)
    assert len(read) == len(yaml.safe_load(path.read_text()))


def of_stage_1(path: Path, parse: Callable[..., Any]) -> None:
    """Keys in place of those of a recipe."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(RECIPE.read_text()), **yaml.safe_load(path.read_text())}))
    parse(path, plugin=True)


def of_guidance(path: Path, _: Any) -> None:
    assert len(read_texts(path, 2)) == 2


# Page, words of the block, and what reads it.
READERS: list[tuple[str, str, Callable[[Path, Any], object]]] = [
    ("docs/howto/behind-a-proxy.md", "run: RUN", of_serve),
    ("docs/howto/several-classes.md", "problem_type", of_stage_1),
    ("docs/stage1.md", "general_dataset", of_stage_1),
    ("docs/clusters.md", "0: ", of_guidance),
    ("docs/robustness.md", "attacked:", lambda path, _: load_yaml(RobustnessSettings, path, [])),
    ("docs/studies.md", "targets:", lambda path, _: load_yaml(CrossEvalArguments, path, [])),
]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_block_is_what_its_program_reads(block: Block, tmp_path: Path, parse: Callable[..., Any]) -> None:
    (read,) = [read for page, words, read in READERS if page == block.page and words in block.text]
    path = tmp_path / "block.yaml"
    path.write_text(block.text)
    read(path, parse)


def test_a_wrong_key_is_found(tmp_path: Path, parse: Callable[..., Any]) -> None:
    path = tmp_path / "block.yaml"
    for read, text in ((of_serve, "colour: red"), (of_stage_1, "colour: red"), (of_stage_1, "output_dim: many")):
        path.write_text(text)
        with pytest.raises((Exception, SystemExit)):
            read(path, parse)
