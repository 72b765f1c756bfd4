"""What a Stage 1 YAML file says about model and inputs, for commands that run the untuned model as it was trained."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.features.store import read_features
from ra_hmd.models.checkpoint import open_backbone
from ra_hmd.models.stage1_config import read_stage1_config

FILE = """
model_name_or_path: models/some
template: qwen2_vl
cutoff_len: 1280
image_max_pixels: 262144
prompt_template: '<image> "{text}" - is it about tea?'
quantization_bit: 4
quantization_method: bnb
trust_remote_code: true
learning_rate: 1.0e-4
clusters: outputs/clusters
guidance: outputs/guidance.json
"""


def test_model_inputs_and_loading_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "stage1.yaml").write_text(FILE)
    found = read_stage1_config(tmp_path / "stage1.yaml")
    assert (found.model, found.guidance) == ("models/some", "outputs/guidance.json")
    assert (found.inputs.template, found.inputs.cutoff_len, found.inputs.image_max_pixels) == ("qwen2_vl", 1280, 262144)
    assert found.inputs.prompt.render("x") == '<image> "x" - is it about tea?'
    assert (found.inputs.clusters, found.inputs.guidance) == (None, None), "places, and no digests"
    assert found.loading == {"quantization_bit": 4, "quantization_method": "bnb"}


@pytest.mark.parametrize(
    ("text", "told"),
    [("template: qwen2_vl", "no `model_name_or_path`"), ("a: [", "not valid YAML"), ("cutoff_len", "no `model_name")],
)
def test_a_file_that_is_none_is_refused(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "stage1.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read_stage1_config(tmp_path / "stage1.yaml")
    with pytest.raises(UserError, match="does not exist"):
        read_stage1_config(tmp_path / "gone.yaml")


def test_the_untuned_model_is_opened_as_the_file_says(tmp_path: Path, tiny) -> None:
    model = tiny("qwen2_vl")
    (tmp_path / "stage1.yaml").write_text(FILE)
    run = open_backbone(str(model), config=tmp_path / "stage1.yaml")
    assert (run.base_model, run.settings.cutoff_len, run.quantized) == (str(model), 1280, True)
    assert run.head is None
    assert not open_backbone(str(model)).quantized


@pytest.mark.slow
def test_extraction_asks_the_question_of_the_file(tmp_path: Path, memes: Path, tiny) -> None:
    path = tmp_path / "stage1.yaml"
    path.write_text(FILE.replace("quantization_bit: 4\nquantization_method: bnb\n", ""))
    words = ["extract", "--backbone-only", "--checkpoint", str(tiny("qwen2_vl")), "--data", str(memes / "a")]
    words += ["--split", "dev", "--limit", "4", "--workers", "0"]
    hidden = {}
    for name, more in {"file": ["--config", str(path)], "default": []}.items():
        done = CliRunner().invoke(app, [*words, "--output", str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
        hidden[name] = read_features(tmp_path / name)
    assert hidden["file"].manifest.fingerprint["inputs.prompt_template"] == '<image> "{text}" - is it about tea?'
    assert abs(hidden["file"].hidden - hidden["default"].hidden).max() > 1e-3
    refused = CliRunner().invoke(
        app,
        ["extract", "--checkpoint", "runs/x", "--config", str(path), "--data", "d", "--output", str(tmp_path / "o")],
    )
    assert refused.exit_code == 2
    assert "use --backbone-only" in refused.output
