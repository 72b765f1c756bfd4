"""Official checkpoints: once converted they score as a computation by hand does, and what is wrong is told, not run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import load_image
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import read_memes
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.features.store import read_features
from ra_hmd.inference.detector import Detector
from ra_hmd.models.checkpoint import open_run
from ra_hmd.models.convert_official import import_official
from ra_hmd.models.head import read_head_config

pytestmark = pytest.mark.slow

H, D = 64, 24
SHAPE = {"hidden_size": H, "num_layers": 3, "proj_dim": D, "output_dim": 1}
RATES = {"input_dropout": 0.1, "dropout": [0.2, 0.4, 0.1]}


def classifier(blocks: int, *, dropouts: bool) -> dict[str, Tensor]:
    """A state dict of the official head; dropouts move the places of its linear layers."""
    layers: list[nn.Module] = [nn.Dropout(0.1)] if dropouts else []
    for number in range(blocks):
        layers += [nn.Linear(H if number == 0 else D, D), nn.ReLU(), *([nn.Dropout(0.2)] if dropouts else [])]
    head = nn.Module()
    head.mlp, head.output_layer = nn.Sequential(*layers), nn.Linear(D, 1)
    torch.manual_seed(blocks)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head.state_dict()


def reference(model: nn.Module, base: Path, state: dict[str, Tensor], memes: list[Meme]) -> list[dict[str, Any]]:
    """LMH, LRC, hidden state and embedding of each meme by itself, by transformers, peft and matrix products."""
    processor = AutoProcessor.from_pretrained(base)
    answers = [processor.tokenizer.encode(word)[0] for word in ("No", "Yes")]
    names = sorted({name.rpartition(".")[0] for name in state if name.startswith("mlp.")}, key=lambda n: int(n[4:]))
    found = []
    for meme in memes:
        question = PromptTemplate().render(meme.text).removeprefix("<image>")
        turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        prompt = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        batch = processor(text=[prompt], images=[load_image(meme.image)], return_tensors="pt")
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True)
            hidden = x = output.hidden_states[-1][0, -1]
            for name in names:
                x = (state[f"{name}.weight"] @ x + state[f"{name}.bias"]).clamp(min=0)
            logit = state["output_layer.weight"] @ x + state["output_layer.bias"]
            lmh = output.logits[0, -1, answers].softmax(-1)[1]
        found.append({"lmh": float(lmh), "lrc": float(logit.sigmoid()), "hidden": hidden, "embedding": x})
    return found


def adapted(base: Path) -> PeftModel:
    """The tiny LMM under a LoRA whose matrices are both random, large enough to matter."""
    model = AutoModelForImageTextToText.from_pretrained(base)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in names if name.startswith("model.language_model.")]
    torch.manual_seed(3)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.15)
    return model


def old_names(folder: Path) -> None:
    """Rewrite an adapter as transformers before 4.52 named its modules, the official code's `target_modules` too."""
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = {name.replace("model.language_model.", "model."): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    modules = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": modules}))


@pytest.fixture(scope="module")
def base(tiny: Callable[[str], Path]) -> Path:
    return tiny("qwen2_vl")


@pytest.fixture(scope="module")
def model(base: Path) -> PeftModel:
    return adapted(base)


@pytest.fixture
def official(model: PeftModel, tmp_path: Path) -> Path:
    """A run folder as the official code leaves it."""
    folder = tmp_path / "official"
    model.save_pretrained(folder)
    old_names(folder)
    torch.save(classifier(2, dropouts=True), folder / "classifier.bin")
    (folder / "classifier_config.json").write_text(json.dumps(SHAPE | RATES))
    return folder


@pytest.fixture(scope="module")
def some(memes: Path) -> list[Meme]:
    """Memes with captions of several lengths."""
    return sorted(read_memes(memes / "a" / "dev.jsonl"), key=lambda meme: len(meme.text))[::4][:6]


def ra_hmd(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception!r}"
    return done.output


def check_detector(run: Path, expected: list[dict[str, Any]], memes: list[Meme]) -> None:
    found = Detector.from_run(run)([Meme(meme.id, meme.image, meme.text) for meme in memes])
    for one, by_hand in zip(found, expected, strict=True):
        assert one.scores == pytest.approx({"lmh": by_hand["lmh"], "lrc": by_hand["lrc"]}, abs=1e-4)


def test_scores_are_those_of_a_computation_by_hand(
    official: Path, model: PeftModel, base: Path, memes: Path, some: list[Meme], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert "4 bits" in ra_hmd("import-official", official, "--output", run)
    state = classifier(2, dropouts=True)
    expected = reference(model, base, state, some)
    with model.disable_adapter():
        bare = reference(model, base, state, some)
    for one, without in zip(expected, bare, strict=True):  # else a lost adapter would go unnoticed
        assert min(abs(one[head] - without[head]) for head in ("lmh", "lrc")) > 1e-3
    check_detector(run, expected, some)
    ra_hmd("extract", "--checkpoint", run, "--data", memes / "a", "--split", "dev", "--workers", "0", "--output",
           tmp_path / "store")  # fmt: skip
    store = read_features(tmp_path / "store")
    rows = [store.ids.index(meme.id) for meme in some]
    for row, by_hand in zip(rows, expected, strict=True):
        assert store.lmh_score[row].item() == pytest.approx(by_hand["lmh"], abs=1e-4)
        assert store.hidden[row] == pytest.approx(by_hand["hidden"].numpy(), abs=1e-4)
        assert store.embedding[row] == pytest.approx(by_hand["embedding"].numpy(), abs=1e-4)
        assert torch.tensor(store.lrc_logit[row]).sigmoid().item() == pytest.approx(by_hand["lrc"], abs=1e-4)
    banked = Detector.from_run(run, tmp_path / "store")([Meme("new", some[0].image, some[0].text)])
    assert banked[0].neighbours[0]["id"] == some[0].id  # its own row, under another id


def test_without_its_configuration_the_shape_comes_from_the_tensors(
    official: Path, model: PeftModel, base: Path, some: list[Meme], tmp_path: Path
) -> None:
    (official / "classifier_config.json").unlink()
    model.save_pretrained(official)  # today's module names
    state = classifier(1, dropouts=False)
    torch.save(state, official / "classifier.bin")
    manifest = import_official(official, tmp_path / "run")
    config = read_head_config(tmp_path / "run")
    assert (config.num_layers, config.input_dim, config.proj_dim, config.dropout) == (2, H, D, ())
    assert any("classifier_config.json" in note for note in manifest.assumptions)
    check_detector(tmp_path / "run", reference(model, base, state, some), some)


def test_the_run_states_what_was_read_and_assumed(official: Path, base: Path, tmp_path: Path) -> None:
    import_official(official, tmp_path / "run", base_model=str(base), quantization_bit=4)
    run = open_run(tmp_path / "run")
    assert run.base_model == str(base.resolve())
    assert run.quantized
    assert run.settings.image_max_pixels == 768 * 768  # as trained; the official extraction has 448 * 448
    config = read_head_config(tmp_path / "run")
    assert (config.num_layers, config.input_dropout, config.dropout) == (3, 0.1, (0.2, 0.4))
    with pytest.raises(UserError, match="is not an empty folder"):
        import_official(official, tmp_path / "run")


def test_opened_in_place_it_names_the_command(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"ra-hmd import-official {official} --output RUN"):
        open_run(official)
    done = CliRunner().invoke(app, ["import-official", str(tmp_path), "--output", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "classifier.bin, adapter_config.json, adapter_model.safetensors is not there" in done.output


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_pickle_does_not_run(official: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save(classifier(2, dropouts=True) | {"mlp.99.weight": Trap(sprung)}, official / "classifier.bin")
    with pytest.raises(UserError, match="cannot be read safely"):
        import_official(official, tmp_path / "run")
    assert not sprung.exists()
    assert not (tmp_path / "run").exists()
    torch.load(official / "classifier.bin", weights_only=False)
    assert sprung.exists()  # the trap works


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


GOOD = classifier(2, dropouts=True)
BAD_HEADS: dict[str, tuple[Any, str]] = {
    "a list": ([1], "holds a list"),
    "no tensor": (GOOD | {"mlp.1.weight": 3}, "is a int, not an ordinary tensor"),
    "whole numbers": (GOOD | {"mlp.1.bias": torch.ones(D, dtype=torch.int64)}, "not all finite floating-point"),
    "not finite": (GOOD | {"mlp.1.bias": torch.full((D,), torch.nan)}, "not all finite floating-point"),
    "another head": (GOOD | {"img_proj.0.weight": torch.ones(2, 2)}, "unknown tensor `img_proj.0.weight`"),
    "no output": ({"mlp.1.weight": torch.ones(D, H), "mlp.1.bias": torch.ones(D)}, "lacks `output_layer.weight`"),
    "no bias": (without(GOOD, "mlp.4.bias"), "`mlp.4.bias` is missing"),
    "batch norm": (GOOD | {"mlp.2.weight": torch.ones(D), "mlp.2.bias": torch.ones(D)}, "no linear layer"),
    "block lost": ({k: v for k, v in GOOD.items() if "mlp.1" not in k}, f"takes hidden states of {D} values"),
    "widths": (GOOD | {"mlp.4.weight": torch.ones(D, D + 1)}, f"`mlp.1` gives {D} values, `mlp.4` takes {D + 1}"),
    "classes": (
        GOOD | {"output_layer.weight": torch.ones(2, D), "output_layer.bias": torch.ones(2)},
        "RA-HMD's has one",
    ),
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_a_wrong_head_is_refused(official: Path, tmp_path: Path, case: str) -> None:
    content, sentence = BAD_HEADS[case]
    if case == "block lost":
        (official / "classifier_config.json").unlink()
    torch.save(content, official / "classifier.bin")
    with pytest.raises(UserError, match=sentence):
        import_official(official, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def change_tensors(change: Callable[[dict[str, Tensor], str], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
        save_file(tensors, path)

    return apply


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "head of another shape": (change_json("classifier_config.json", proj_dim=9), f"by the tensors .* it is {D}"),
    "rates": (change_json("classifier_config.json", dropout=[2.0, 0.0]), "`dropout.0` is 2"),
    "not LoRA": (change_json("adapter_config.json", peft_type="IA3"), "only plain LoRA"),
    "other rank": (change_json("adapter_config.json", r=5), "by `r` and .* it needs"),
    "no rank": (change_json("adapter_config.json", r=None), "`r`: None is not a whole number"),
    "pattern": (change_json("adapter_config.json", target_modules=".*"), "a list of module names is needed"),
    "no such module": (change_json("adapter_config.json", target_modules=["query"]), "has no linear layer `query`"),
    "no base": (change_json("adapter_config.json", base_model_name_or_path=None), "give it with --base-model"),
    "base gone": (change_json("adapter_config.json", base_model_name_or_path="./gone"), "say where it is with --base"),
    "tensor lost": (change_tensors(lambda tensors, name: tensors.pop(name)), "self_attn.q_proj` has .* it needs"),
    "module lost": (
        change_tensors(lambda t, name: [t.pop(key) for key in [*t] if key.startswith(name[:-14])]),
        "layers.0.self_attn.q_proj` is adapted, but has no tensors",
    ),
    "tensor not known": (change_tensors(lambda t, name: t.update({"w": torch.ones(1)})), "`w` is no LoRA matrix"),
    "not finite": (change_tensors(lambda t, name: t[name].fill_(torch.inf)), "not finite"),
    "damaged": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "is damaged"),
    "fully tuned": (
        lambda folder: (folder / "adapter_config.json").rename(folder / "config.json"),
        "adapter_config.json is not there. Fully tuned models",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_files_that_do_not_fit_are_refused(official: Path, tmp_path: Path, case: str) -> None:
    change, sentence = BAD_FOLDERS[case]
    change(official)
    with pytest.raises(UserError, match=sentence):
        import_official(official, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_lmm_of_a_family_that_the_official_code_does_not_know_is_refused(official: Path, tmp_path: Path) -> None:
    ra_hmd("tiny-lmm", "--family", "llava", "--output", tmp_path / "llava")
    with pytest.raises(UserError, match="is a llava model; official checkpoints are of qwen2_vl, "):
        import_official(official, tmp_path / "run", base_model=str(tmp_path / "llava"))


def test_an_lmm_of_another_width_is_refused(official: Path, tmp_path: Path) -> None:
    ra_hmd("tiny-lmm", "--output", tmp_path / "wider")
    with pytest.raises(UserError, match=rf"takes hidden states of {H} values, and .*wider gives 128"):
        import_official(official, tmp_path / "run", base_model=str(tmp_path / "wider"))
