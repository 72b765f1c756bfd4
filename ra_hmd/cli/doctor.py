"""`ra-hmd doctor`: checks of the installation and the machine, with a remedy for each problem.

Every check is a function that returns rows and changes nothing; those of package metadata are in `doctor_packages`.
What could crash or print (importing a compiled package, starting Python with the plugin) happens in a child process of
the same interpreter.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from packaging.version import Version

from ra_hmd.cli.doctor_packages import Check, check_bad_pairs, check_extras, check_packages, pip_install, reinstall
from ra_hmd.cli.finish import Outcome
from ra_hmd.core.package_versions import installed_version

if TYPE_CHECKING:
    from rich.console import Console

doctor_app = typer.Typer()

DISABLE_PLUGIN = "RA_HMD_DISABLE_PLUGIN"
_GIB = 1 << 30
_MIN_FREE = 5 * _GIB
# A 7B model in bf16, its download and two checkpoints.
_COMFORTABLE_FREE = 40 * _GIB
_CHILD_TIMEOUT = 300
_MIN_FLASH_ATTENTION = Version("2.3.3")  # below, transformers does not use it
_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}

# Compiled packages that can be installed and still not work, and what is lost then.
_IMPORTS = {
    "torchvision": "image processing",
    "torchaudio": "LLaMA-Factory's imports",
    "bitsandbytes": "4-bit training (the `_qlora` files)",
    "deepspeed": "ZeRO (configs/deepspeed)",
    "flash_attn": "flash_attn: fa2 (configs/stage1)",
    "liger_kernel.transformers": "Liger kernels (enable_liger_kernel)",
}

# Run by a fresh interpreter; `-P` keeps the current folder from lending it a plugin that is not installed.
_PLUGIN_PROBE = """
import json, os, sys, sysconfig
names = [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path]
found = {
    "finder": "TunerFinder" in names and "llamafactory_ext._autoload" in sys.modules,
    "torch": "torch" in sys.modules,
    "pth": [p for p in dict.fromkeys(sys.path) if os.path.isfile(os.path.join(p, "llamafactory_ext.pth"))],
    "hosts": None,
    "diverted": [],
    "error": None,
}
try:
    from llamafactory_ext.install import SUPPORTED_HOSTS
    from llamafactory_ext.launchers import diverted
    found["hosts"] = list(SUPPORTED_HOSTS)
    found["diverted"] = diverted()
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


def diagnose() -> list[Check]:
    """Run every check, in the order in which problems are best fixed. Takes some seconds, most of them for imports."""
    checks: tuple[Callable[[], list[Check]], ...] = (
        check_python,
        check_packages,
        check_extras,
        check_bad_pairs,
        check_plugin,
        check_commands,
        check_devices,
        check_faiss,
        check_imports,
        check_flash_attention,
        check_disk,
    )
    return [found for check in checks for found in check()]


@doctor_app.command("doctor")
def doctor_command() -> Outcome:
    """Check this installation: plugin, versions, torchrun, devices, FAISS. Exit code 1 on a problem."""
    from rich.console import Console

    from ra_hmd.core.progress import in_notebook

    console = Console()
    with nullcontext() if in_notebook() else console.status("checking this machine …"):
        checks = diagnose()
    failed = any(check.status == "problem" for check in checks)
    return Outcome([asdict(check) for check in checks], [partial(print_checks, checks, console)], int(failed))


def print_checks(checks: Sequence[Check], console: "Console") -> None:
    """Print all checks and remedies."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "", "found", title="ra-hmd doctor")
    for check in checks:
        colour = _COLOURS[check.status]
        table.add_row(check.name, f"[{colour}]{check.status}[/]", escape(check.found))
    console.print(table)
    for check in checks:
        if check.remedy:
            colour = _COLOURS[check.status]
            console.print(f"[{colour}]{check.status}[/] {escape(check.name)}: {escape(check.remedy)}", soft_wrap=True)
    problems = sum(check.status == "problem" for check in checks)
    console.print(f"{problems} problem(s)." if problems else "No problems.")


def check_python() -> list[Check]:
    """Check the interpreter and its environment."""
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.prefix == sys.base_prefix:
        return [Check("Python", "note", found, "This is no virtual environment: other packages may be affected.")]
    return [Check("Python", "ok", found)]


def check_plugin() -> list[Check]:
    """Check that Python starts with the plugin for stage `sft-classifier`, and that it supports the host's version."""
    done = _child(["-P", "-c", _PLUGIN_PROBE])
    if done.returncode != 0:
        remedy = f"Python does not start cleanly here; repair the environment, then run {reinstall()}."
        return [Check("plugin", "problem", _last_line(done.stderr), remedy)]
    probe: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return [_plugin_state(probe, done.stderr), *_plugin_host(probe), *_plugin_environment(probe)]


def _plugin_state(probe: dict[str, Any], stderr: str) -> Check:
    setting = os.environ.get(DISABLE_PLUGIN)
    if probe["finder"] and probe["torch"]:
        found, remedy = "active, but torch is imported at every start", "Find the .pth file that imports it."
    elif probe["finder"]:
        return Check("plugin", "ok", f"active ({', '.join(probe['pth']) or 'no .pth file on sys.path'})")
    elif setting == "1":
        found = f"switched off by {DISABLE_PLUGIN}={setting}"
        remedy = f"`unset {DISABLE_PLUGIN}`; until then LLaMA-Factory does not know stage sft-classifier."
    elif not probe["pth"]:
        found, remedy = "llamafactory_ext.pth is not installed", f"Run {reinstall()}: it installs it."
    else:
        cause = _last_line(stderr) if stderr.strip() else "its .pth file is there but did not run"
        found, remedy = f"not active: {cause}", f"Start Python without -S and -I, or reinstall: {reinstall()}."
    return Check("plugin", "problem", found, remedy)


def _plugin_host(probe: dict[str, Any]) -> list[Check]:
    if probe["hosts"] is None:
        return [Check("plugin package", "problem", str(probe["error"]), f"Run {reinstall()}.")]
    known = ", ".join(probe["hosts"])
    try:
        version = importlib.metadata.version("llamafactory")
    except importlib.metadata.PackageNotFoundError:
        return []  # check_extras says so
    if version not in probe["hosts"]:
        remedy = f"Stage sft-classifier will refuse to start: install llamafactory=={probe['hosts'][-1]}."
        return [Check("plugin's host", "problem", f"LLaMA-Factory {version}; the plugin knows {known}", remedy)]
    return [Check("plugin's host", "ok", f"LLaMA-Factory {version} (the plugin knows {known})")]


def _plugin_environment(probe: dict[str, Any]) -> list[Check]:
    """Check for variables that make LLaMA-Factory use another launcher or engine, which lacks our stage."""
    if not probe["diverted"]:
        return []
    remedy = "Start training from a shell in which it is not set."
    return [Check("plugin's environment", "problem", " ".join(probe["diverted"]), remedy)]


def check_commands() -> list[Check]:
    """Check that `torchrun` and `llamafactory-cli` on PATH belong to this environment, if LLaMA-Factory is in it.

    Without it nobody calls them; pipx, for example, puts neither on PATH.
    """
    if installed_version("llamafactory") is None:
        return []
    rows = []
    for name in ("torchrun", "llamafactory-cli"):
        own = Path(sysconfig.get_path("scripts")) / name
        remedy = f"Put this environment first on PATH: `export PATH={own.parent}:$PATH`, or activate it."
        if name == "torchrun":
            remedy += " LLaMA-Factory starts whatever `torchrun` it finds there."
        found = shutil.which(name)
        if found is None:
            rows.append(Check(name, "problem", "not on PATH", remedy))
            continue
        problem = foreign(Path(found))
        rows.append(Check(name, "problem", f"{found}: {problem}", remedy) if problem else Check(name, "ok", found))
    return rows


def foreign(script: Path) -> str | None:
    """Return why a console script does not run this environment's Python, or None if it does."""
    interpreter = _interpreter(script)
    if interpreter is None:  # a binary launcher (Windows): its place has to do
        here = Path(sysconfig.get_path("scripts"))
        return None if script.parent.resolve() == here.resolve() else "another environment's"
    if not interpreter.is_file():
        return f"its interpreter {interpreter} does not exist"
    # Not the resolved interpreter: environments share one, through links. Their `bin` folders differ.
    if interpreter.parent.resolve() != Path(sys.executable).parent.resolve():
        return f"it runs {interpreter}"
    return None


def _interpreter(script: Path) -> Path | None:
    """Interpreter in a script's first lines, also in the `exec` form that pip uses for long paths."""
    lines = script.read_bytes()[:1024].decode("utf-8", errors="replace").splitlines()
    if not lines or not lines[0].startswith("#!"):
        return None
    words = lines[0][2:].split()
    long_form = re.match(r"'''exec'\s+(\"[^\"]+\"|\S+)", lines[1]) if len(lines) > 1 else None
    if long_form:
        return Path(long_form.group(1).strip('"'))
    if words and Path(words[0]).name == "env" and len(words) > 1:
        return Path(shutil.which(words[-1]) or words[-1])
    return Path(words[0]) if words else None


def check_devices() -> list[Check]:
    """Check the accelerators that torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        remedy = "Reinstall torch, torchvision and torchaudio together, from one index."
        return [Check("torch import", "problem", f"{type(error).__name__}: {error}", remedy)]
    if torch.cuda.is_available():
        return _cuda_devices(torch)
    cores = os.cpu_count() or 1
    if torch.backends.mps.is_available():
        remedy = "Not tried here. Begin with a `_lora` file and bf16=false flash_attn=sdpa enable_liger_kernel=false."
        return [Check("device", "note", f"Apple MPS, {cores} CPU cores", remedy)]
    if shutil.which("nvidia-smi"):
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        remedy = "Install a torch build that fits the driver (`nvidia-smi` shows its CUDA version)."
        found = f"nvidia-smi is here, but torch {torch.__version__} ({build}) sees no GPU"
        return [Check("device", "problem", found, remedy)]
    remedy = "Encoders, heads and banks run here, and the demo; the files in configs/stage1 need a GPU."
    return [Check("device", "note", f"CPU only, {cores} cores", remedy)]


def _cuda_devices(torch: Any) -> list[Check]:
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = properties.major >= 8 or torch.version.hip is not None
        found = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, bf16 {'yes' if bf16 else 'no'}"
        remedy = "" if bf16 else "No bf16 before Ampere: add bf16=false fp16=true flash_attn=sdpa to the command."
        rows.append(Check(f"GPU {index}", "ok" if bf16 else "note", found, remedy))
    return rows


def check_faiss() -> list[Check]:
    """Check FAISS and its GPU support."""
    both = [name for name in ("faiss-gpu", "faiss-cpu") if installed_version(name)]
    if len(both) > 1:
        remedy = "They overwrite each other's files: uninstall both, then install the one that ra-hmd asks for."
        return [Check("FAISS", "problem", "faiss-gpu and faiss-cpu are both installed", remedy)]
    done = _child(["-c", "import faiss; print(faiss.__version__, getattr(faiss, 'get_num_gpus', int)())"])
    if done.returncode != 0:
        package = both[0] if both else "faiss-cpu"
        remedy = f"Without FAISS there is no retrieval. Reinstall it: `{pip_install(f'--force-reinstall {package}')}`."
        return [Check("FAISS", "problem", _last_line(done.stderr), remedy)]
    version, gpus = done.stdout.split()[-2:]
    return [Check("FAISS", "ok", f"{version}, {gpus} GPU(s) for search")]


def check_imports() -> list[Check]:
    """Check that the installed compiled packages can be imported."""
    present = {module: use for module, use in _IMPORTS.items() if installed_version(module.partition(".")[0])}
    with ThreadPoolExecutor(max_workers=4) as pool:
        results = list(pool.map(lambda module: _child(["-c", f"import {module}"]), present))
    rows = []
    for (module, use), done in zip(present.items(), results, strict=True):
        name = f"import {module}"
        if done.returncode == 0:
            rows.append(Check(name, "ok", "works"))
        else:
            remedy = f"Needed for {use}. Reinstall it so that it fits torch."
            rows.append(Check(name, "problem", _last_line(done.stderr), remedy))
    return rows


def check_flash_attention() -> list[Check]:
    """Check for flash-attn (`flash_attn: fa2` in Stage 1 files), without which LLaMA-Factory warns and continues."""
    if installed_version("llamafactory") is None:
        return []
    version = installed_version("flash-attn")
    if version is not None and Version(version) < _MIN_FLASH_ATTENTION:
        remedy = f"transformers leaves it aside: install flash-attn {_MIN_FLASH_ATTENTION} or newer."
        return [Check("flash-attn", "note", version, remedy)]
    if version is not None:
        return [Check("flash-attn", "ok", version)]
    remedy = "LLaMA-Factory warns and uses torch's own attention; install flash-attn, or say flash_attn=sdpa."
    return [Check("flash-attn", "note", "not installed; configs/stage1 asks for fa2", remedy)]


def check_disk() -> list[Check]:
    """Check the free disk space for runs and for downloaded models."""
    cache = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    rows = []
    for name, folder in {"disk, here": Path.cwd(), "disk, models": Path(cache).expanduser()}.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        found = f"{free / _GIB:.0f} GiB free at {folder}"
        if free < _MIN_FREE:
            remedy = "Checkpoints will not fit: free some room, or set output_dir (here) or HF_HOME (models)."
            rows.append(Check(name, "problem", found, remedy))
        elif free < _COMFORTABLE_FREE:
            remedy = "Enough for the demo; a 7B model, its download and two checkpoints take more."
            rows.append(Check(name, "note", found, remedy))
        else:
            rows.append(Check(name, "ok", found))
    return rows


def _child(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with arguments; a timeout counts as a failure."""
    command = [sys.executable, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer in {_CHILD_TIMEOUT} seconds")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no message"
