"""`ra-hmd doctor`: each finding is provoked, with fake programs and packages where the real ones are fine."""

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines import ROOT
from packaging.requirements import Requirement
from rich.console import Console

from ra_hmd.cli import doctor, doctor_packages
from ra_hmd.cli.doctor import Check
from ra_hmd.core.extras import EXTRAS, Extra

SCRIPTS = Path(sysconfig.get_path("scripts"))


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def fake_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Only `versions` are installed, as far as package metadata tell."""

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)


def fake_child(monkeypatch: pytest.MonkeyPatch, returncode: int, stdout: str = "", stderr: str = "") -> None:
    def child(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, returncode, stdout, stderr)

    monkeypatch.setattr(doctor, "_child", child)


class TestReport:
    def run(self, monkeypatch: pytest.MonkeyPatch, *checks: Check) -> tuple[int, str]:
        monkeypatch.setattr(doctor, "diagnose", lambda: list(checks))
        console = Console(file=io.StringIO(), width=200)
        monkeypatch.setattr("rich.console.Console", lambda *_: console)
        done = doctor.doctor_command()
        done.show(as_json=False)
        return done.exit_code, console.file.getvalue()

    def test_notes_do_not_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        code, text = self.run(monkeypatch, Check("a", "ok", "fine"), Check("device", "note", "CPU only", "Buy one."))
        assert code == 0
        assert "No problems." in text
        assert "note device: Buy one." in text

    def test_a_problem_fails_and_its_remedy_is_printed_untouched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        remedy = "Run `pip install -e .[dev]` and read [red]this[/red]."
        code, text = self.run(monkeypatch, Check("a", "ok", "fine"), Check("b", "problem", "x[y]", remedy))
        assert code == 1
        assert "x[y]" in text
        assert remedy in text
        assert "1 problem(s)." in text

    def test_a_problem_without_a_remedy_cannot_be_written(self) -> None:
        with pytest.raises(ValueError, match="without a remedy"):
            Check("a", "problem", "broken")


class TestCommands:
    def test_own_programs_are_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not (SCRIPTS / "torchrun").is_file():
            pytest.skip("this environment has no console scripts")
        monkeypatch.setenv("PATH", os.pathsep.join([str(SCRIPTS), os.environ["PATH"]]))
        assert [check.status for check in doctor.check_commands()] == ["ok", "ok"]

    def test_a_foreign_torchrun_first_on_path(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        python = write_script(tmp_path / "other" / "bin" / "python3", "#!/bin/sh\n")
        write_script(tmp_path / "torchrun", f"#!{python}\nimport sys\n")
        monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), str(SCRIPTS), os.environ["PATH"]]))
        found = only(doctor.check_commands(), "torchrun")
        assert found.status == "problem"
        assert str(python) in found.found
        assert str(SCRIPTS) in found.remedy

    def test_without_the_host_nobody_calls_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        fake_versions(monkeypatch, {})
        assert doctor.check_commands() == []
        assert doctor.check_flash_attention() == []

    def test_neither_on_path(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        checks = doctor.check_commands()
        assert [(check.status, check.found) for check in checks] == [("problem", "not on PATH")] * 2

    @pytest.mark.parametrize(
        "head",
        [
            f"#!{sys.executable}\n",
            f"#!{sys.executable} -s\n",
            f"#!/bin/sh\n'''exec' {sys.executable} \"$0\" \"$@\"\n' '''\n",
            f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\n",
        ],
    )
    def test_scripts_of_this_environment(self, tmp_path: Path, head: str) -> None:
        assert doctor.foreign(write_script(tmp_path / "torchrun", head + "import sys\n")) is None

    def test_env_looks_the_interpreter_up(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        script = write_script(tmp_path / "torchrun", "#!/usr/bin/env other-python\n")
        python = write_script(tmp_path / "bin" / "other-python", "#!/bin/sh\n")
        monkeypatch.setenv("PATH", str(python.parent))
        assert doctor.foreign(script) == f"it runs {python}"

    def test_a_moved_environment(self, tmp_path: Path) -> None:
        script = write_script(tmp_path / "torchrun", "#!/no/such/bin/python\n")
        assert doctor.foreign(script) == "its interpreter /no/such/bin/python does not exist"

    def test_a_binary_launcher_is_judged_by_its_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        launcher = write_script(tmp_path / "torchrun.exe", "MZ\n")
        assert doctor.foreign(launcher) == "another environment's"
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        assert doctor.foreign(launcher) is None


PROBE = {"finder": True, "torch": False, "pth": ["/site"], "hosts": ["0.9.5"], "diverted": [], "error": None}


class TestPlugin:
    def check(self, monkeypatch: pytest.MonkeyPatch, stderr: str = "", **changes: Any) -> list[Check]:
        fake_child(monkeypatch, 0, f"some banner\n{json.dumps({**PROBE, **changes})}\n", stderr)
        fake_versions(monkeypatch, {"llamafactory": "0.9.5"})
        return doctor.check_plugin()

    def test_active(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(doctor.DISABLE_PLUGIN, raising=False)
        assert [check.status for check in self.check(monkeypatch)] == ["ok", "ok"]

    def test_switched_off_for_real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(doctor.DISABLE_PLUGIN, "1")
        found = only(doctor.check_plugin(), "plugin")
        assert found.status == "problem"
        assert f"{doctor.DISABLE_PLUGIN}=1" in found.found
        assert f"unset {doctor.DISABLE_PLUGIN}" in found.remedy

    @pytest.mark.parametrize(
        ("changes", "stderr", "text"),
        [
            ({"finder": False, "pth": []}, "", "not installed"),
            ({"finder": False}, "", "did not run"),
            ({"finder": False}, "Error processing line 1\nImportError: boom\n", "ImportError: boom"),
            ({"torch": True}, "", "torch is imported at every start"),
        ],
    )
    def test_not_active(self, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], stderr: str, text: str) -> None:
        monkeypatch.delenv(doctor.DISABLE_PLUGIN, raising=False)
        found = only(self.check(monkeypatch, stderr, **changes), "plugin")
        assert found.status == "problem"
        assert text in found.found

    def test_unknown_host_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = only(self.check(monkeypatch, hosts=["0.8.0", "0.9.4"]), "plugin's host")
        assert found.status == "problem"
        assert "0.9.5" in found.found
        assert "llamafactory==0.9.4" in found.remedy

    def test_a_variable_that_leads_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("USE_V1", "1")
        found = only(doctor.check_plugin(), "plugin's environment")
        assert found.status == "problem"
        assert "USE_V1=1" in found.found

    def test_plugin_package_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checks = self.check(monkeypatch, finder=False, pth=[], hosts=None, error="ModuleNotFoundError: gone")
        assert [check.status for check in checks] == ["problem", "problem"]
        assert "gone" in only(checks, "plugin package").found

    def test_python_does_not_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_child(monkeypatch, 1, stderr="Fatal Python error\nno encodings\n")
        (found,) = doctor.check_plugin()
        assert (found.status, found.found) == ("problem", "no encodings")

    @pytest.mark.parametrize("setting", [None, "1"])
    def test_the_probe_sees_a_real_finder(self, monkeypatch: pytest.MonkeyPatch, setting: str | None) -> None:
        """The probe's own code, with the plugin imported by hand in front of it: independent of the installation."""
        monkeypatch.delenv(doctor.DISABLE_PLUGIN, raising=False)
        if setting:
            monkeypatch.setenv(doctor.DISABLE_PLUGIN, setting)
        root = Path(doctor.__file__).resolve().parents[2]
        code = f"import sys; sys.path.insert(0, {str(root)!r}); import llamafactory_ext._autoload\n"
        done = doctor._child(["-S", "-c", code + doctor._PLUGIN_PROBE])
        probe = json.loads(done.stdout)
        assert probe["finder"] is (setting is None)
        assert probe["torch"] is False
        assert probe["hosts"]


class TestPackages:
    def check(self, monkeypatch: pytest.MonkeyPatch, *needed: str, **versions: str) -> list[Check]:
        fake_versions(monkeypatch, {doctor_packages.DISTRIBUTION: "1.0", **versions})
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(needed))
        return doctor.check_packages()[1:]

    def test_ranges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checks = self.check(
            monkeypatch, "torch!=2.9.*,>=2.6", "peft<0.19", "gone>=3", "other", torch="2.9.1", peft="0.18.0", other="1"
        )
        assert [(check.name, check.status) for check in checks] == [
            ("torch", "problem"),
            ("peft", "ok"),
            ("gone", "problem"),
            ("other", "ok"),
        ]
        assert "2.9.1" in checks[0].found
        assert 'pip install "gone>=3"' in checks[2].remedy

    def test_faiss_for_cpus_stands_in_for_that_of_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (found,) = self.check(monkeypatch, "faiss-gpu>=1.15", **{"faiss-cpu": "1.14"})
        assert (found.name, found.status, found.found) == ("faiss-gpu", "ok", "faiss-cpu 1.14 is in its place")
        (found,) = self.check(monkeypatch, "faiss-gpu>=1.15")
        assert found.status == "problem"

    def test_other_platforms_and_extras_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.check(monkeypatch, "a; sys_platform == 'none'", "pytest>=8; extra == 'dev'") == []

    def test_an_extra_is_installed_or_says_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extras = {"some": Extra("one thing", {"json": "json"}), "more": Extra("another", {"no_such_module": "gone-1"})}
        monkeypatch.setattr(doctor_packages, "EXTRAS", extras)
        needed = ["torch>=2", "json>=3; extra == 'some'", "gone-1>=2; extra == 'more'", "torch<2; extra == 'more'"]
        fake_versions(monkeypatch, {doctor_packages.DISTRIBUTION: "1.0", "torch": "2.8", "json": "2.9"})
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
        some, more, package = doctor.check_extras()
        assert (some.name, some.status, some.found) == ("extra some", "ok", "installed: one thing")
        assert (more.name, more.status, more.found) == ("extra more", "note", "not installed: gone-1 missing")
        assert "For another: `" in more.remedy
        assert "pip install 'ra-hmd[more]'" in more.remedy
        assert (package.name, package.status) == ("json", "problem"), "of an extra that is installed"

    def test_without_the_package_no_extra_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_versions(monkeypatch, {})
        assert doctor.check_extras() == []

    def test_the_extras_are_those_that_can_be_installed(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        stated = {extra: {Requirement(text) for text in texts} for extra, texts in project.items()}
        assert set(EXTRAS) == set(stated) - {"dev", "docs"}
        for name, extra in EXTRAS.items():
            own = {one.name for one in stated[name]} - {"ra-hmd"}
            inherited = {one.name for text in stated[name] if text.name == "ra-hmd"
                         for part in text.extras for one in stated[part]}  # fmt: skip
            assert set(extra.modules.values()) | {"milvus-lite", "filelock"} >= own | inherited, name
            assert set(extra.modules.values()) <= own | inherited, name
            assert {extra.modules[module] for module in extra.linux} == {
                one.name for one in stated[name] if "sys_platform == 'linux'" in str(one.marker).replace('"', "'")
            }

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def requires(name: str) -> None:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "requires", requires)
        (found,) = doctor.check_packages()
        assert found.status == "problem"
        assert "pip install -e ." in found.remedy

    @pytest.mark.parametrize(
        ("versions", "status"),
        [
            ({"torch": "2.8.0"}, "ok"),
            ({"torch": "2.9.0"}, "problem"),
            ({"torch": "2.9.1+cu128"}, "problem"),
            ({"torch": "2.14.1", "transformers": "5.6.0"}, "ok"),
            ({"transformers": "5.6.0", "flash-attn": "2.8.3"}, "problem"),
            ({"transformers": "5.5.4", "flash-attn": "2.8.3"}, "ok"),
        ],
    )
    def test_versions_that_do_not_fit(
        self, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], status: str
    ) -> None:
        fake_versions(monkeypatch, versions)
        (found,) = doctor.check_bad_pairs()
        assert found.status == status

    def test_both_faiss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_versions(monkeypatch, {"faiss-gpu": "1.15", "faiss-cpu": "1.9"})
        assert doctor.check_faiss()[0].status == "problem"

    def test_broken_faiss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_child(monkeypatch, 1, stderr="Traceback\nImportError: libfaiss.so\n")
        assert doctor.check_faiss()[0].found == "ImportError: libfaiss.so"

    def test_an_installed_package_that_does_not_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_IMPORTS", {"json": "nothing", "no_such_module.part": "the test"})
        monkeypatch.setattr(doctor, "installed_version", lambda name: "1")
        works, broken = doctor.check_imports()
        assert works.status == "ok"
        assert broken.status == "problem"
        assert "ModuleNotFoundError" in broken.found
        assert "the test" in broken.remedy

    def test_a_hanging_child_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_CHILD_TIMEOUT", 0.2)
        done = doctor._child(["-c", "import time; time.sleep(30)"])
        assert done.returncode == 124
        assert "no answer" in done.stderr

    def test_flash_attention_is_optional(self, monkeypatch: pytest.MonkeyPatch) -> None:
        host = {"llamafactory": "0.9.5"}
        fake_versions(monkeypatch, host)
        assert doctor.check_flash_attention()[0].status == "note"
        fake_versions(monkeypatch, {"flash-attn": "2.8.3", **host})
        assert doctor.check_flash_attention()[0] == Check("flash-attn", "ok", "2.8.3")
        fake_versions(monkeypatch, {"flash-attn": "2.3.2", **host})
        assert doctor.check_flash_attention()[0].status == "note"


class TestMachine:
    @pytest.fixture
    def no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Check]:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

        def check(nvidia_smi: str | None) -> Check:
            monkeypatch.setattr(shutil, "which", lambda name: nvidia_smi)
            (found,) = doctor.check_devices()
            return found

        return check

    def test_no_gpu_is_a_note(self, no_gpu) -> None:
        found = no_gpu(None)
        assert found.status == "note"
        assert "CPU only" in found.found

    def test_a_gpu_that_torch_does_not_see_is_a_problem(self, no_gpu) -> None:
        found = no_gpu("/usr/bin/nvidia-smi")
        assert found.status == "problem"
        assert "sees no GPU" in found.found

    def test_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        cards = [("NVIDIA H100", 9), ("Tesla V100", 7)]
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda i: SimpleNamespace(name=cards[i][0], major=cards[i][1], total_memory=80 << 30),
        )
        new, old = doctor.check_devices()
        assert (new.status, new.found) == ("ok", "NVIDIA H100, 80 GiB, bf16 yes")
        assert old.status == "note"
        assert "fp16=true" in old.remedy

    @pytest.mark.parametrize(("gib", "status"), [(1, "problem"), (10, "note"), (500, "ok")])
    def test_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gib: int, status: str) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there"))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=gib << 30))
        checks = doctor.check_disk()
        assert [check.status for check in checks] == [status, status]
        assert str(tmp_path) in checks[1].found


def test_a_real_diagnosis_names_everything_once() -> None:
    checks = doctor.diagnose()
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"Python", "plugin", "torchrun", "llamafactory-cli", "FAISS", "flash-attn", "disk, here"} <= set(names)
    assert all(check.remedy for check in checks if check.status != "ok")


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, ra_hmd.cli.doctor; print(sorted({'torch', 'rich', 'faiss'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
