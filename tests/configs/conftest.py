"""The script that writes configs/stage1, and LLaMA-Factory's command line up to its checks."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from config_files import ROOT


@pytest.fixture(scope="module")
def make_configs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_configs", ROOT / "scripts" / "make_configs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """LLaMA-Factory's command line, up to and including its checks: YAML path, overrides → five argument objects."""
    from llamafactory.hparams import FinetuningArguments, get_train_args, parser, read_args

    from llamafactory_ext.install import extend_arguments

    monkeypatch.delenv("ALLOW_EXTRA_ARGS", raising=False)
    monkeypatch.chdir(ROOT)
    for name in ("_TRAIN_ARGS", "_INFER_ARGS"):
        classes = getattr(parser, name)
        # A copy without our class: the extension must not outlive the test, nor reach it from another one.
        stock = [FinetuningArguments if issubclass(cls, FinetuningArguments) else cls for cls in classes]
        monkeypatch.setattr(parser, name, stock)

    def run(path: Path, *overrides: str, plugin: bool) -> SimpleNamespace:
        overrides = ("use_cpu=true", f"output_dir={tmp_path / 'run'}", *overrides)
        monkeypatch.setattr(sys, "argv", ["llamafactory-cli", str(path), *overrides])
        if plugin:
            extend_arguments()
        names = ("model", "data", "training", "finetuning", "generating")
        return SimpleNamespace(**dict(zip(names, get_train_args(read_args()), strict=True)))

    return run
