"""The plugin: present at every start, silent where it is not asked, clear where it cannot work."""

import json
import re
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from engines import BIN, ROOT, run, train

pytestmark = pytest.mark.slow

PROBE = """
import json, sys
first = sys.meta_path[0]
plain = {"torch": "torch" in sys.modules, "finder": first.__name__ if isinstance(first, type) else ""}
import llamafactory.train.tuner as tuner
from llamafactory.hparams import FinetuningArguments, parser
print(json.dumps(plain | {"installed": getattr(tuner, "_ra_hmd_installed", False),
                          "stock_arguments": FinetuningArguments in parser._TRAIN_ARGS}))
"""


def probe(python: Path, cwd: Path, **env: str) -> dict[str, Any]:
    done = run([str(python), "-c", PROBE], cwd, **env)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def test_editable_install_is_active_and_costs_nothing(tmp_path: Path) -> None:
    found = probe(Path(sys.executable), tmp_path)
    assert found == {"torch": False, "finder": "TunerFinder", "installed": True, "stock_arguments": True}


def test_opt_out(tmp_path: Path) -> None:
    found = probe(Path(sys.executable), tmp_path, RA_HMD_DISABLE_PLUGIN="1")
    assert not found["installed"]
    assert found["finder"] != "TunerFinder"


def test_wheel_install_is_active(tmp_path: Path) -> None:
    built = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], ROOT)
    assert built.returncode == 0, built.stdout
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"llamafactory_ext.pth", "llamafactory_ext.start", "ra_hmd/cli/app.py", "stage2/trainer.py"} <= set(names)

    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies come from this environment; a path in a .pth file does not run that folder's own .pth files.
    (site / "zz_dependencies.pth").write_text(f"{next(BIN.parent.glob('lib/python*/site-packages'))}\n")
    found = probe(tmp_path / "env" / "bin" / "python", tmp_path)
    assert found == {"torch": False, "finder": "TunerFinder", "installed": True, "stock_arguments": True}


def test_unknown_host_version_keeps_stock_stages(tmp_path: Path) -> None:
    script = """
import llamafactory.extras.env as env
env.VERSION = "9.9.9"
import llamafactory.train.tuner as tuner
calls = []
tuner.get_train_args = lambda args: calls.append(args) or exit(7)
for stage in ("sft-classifier", "sft"):
    try:
        tuner._training_function({"args": {"stage": stage}, "callbacks": []})
    except RuntimeError as error:
        print("REFUSED", error)
"""
    done = run([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 7, done.stdout  # the stock stage went on into the host
    assert re.search(
        r"REFUSED Stage sft-classifier .* works with LLaMA-Factory 0\.9\.5, but LLaMA-Factory 9\.9\.9", done.stdout
    )


def losses(output: Path) -> list[float]:
    state = json.loads((output / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def test_stock_sft_trains_identically_with_and_without_the_plugin(
    stage1_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    ours = {"loss_ratio": None, "classifier_lr": None, "proj_dim": None, "eval_dataset": None}
    for name, env in (("with", {}), ("without", {"RA_HMD_DISABLE_PLUGIN": "1"})):
        train(stage1_config(tmp_path / name, stage="sft", **ours), tmp_path, **env)
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert len(losses(tmp_path / "with")) == 4
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("with", "without")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_stock_sft_still_refuses_our_keys(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    args = {"stage": "sft", "model_name_or_path": str(tiny("qwen2_vl")), "output_dir": "out", "classifier_lr": 1.0}
    script = f"from llamafactory.train import tuner; tuner.run_exp({args!r})"
    done = run([sys.executable, "-c", script], tmp_path)
    assert done.returncode != 0
    assert "not used by the HfArgumentParser: ['classifier_lr']" in done.stdout


def test_module_entry_point_works_without_the_pth(stage1_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(stage1_config(tmp_path / "out", max_samples=8, eval_dataset=None)))
    done = run([sys.executable, "-m", "llamafactory_ext", str(path)], tmp_path, RA_HMD_DISABLE_PLUGIN="1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (tmp_path / "out" / "head.safetensors").is_file()
