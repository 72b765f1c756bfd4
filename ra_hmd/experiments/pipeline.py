"""Runner for a sequence of commands that skips the steps that an earlier run finished."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event, Lock
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.config import shipped_configs
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra
from ra_hmd.core.manifests import PipelineManifest, read_manifest, write_manifest
from ra_hmd.core.progress import notebook_safe_progress

TRAINER = "llamafactory-cli"
"""Program that trains and exports language models."""

_CONTENT = {".safetensors", ".parquet", ".jsonl", ".yaml", ".png"}
"""Suffixes of the files that determine a step's result and that no later step changes."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: Title on the console.
        command: Words of the command.
        group: Consecutive steps of the same group are independent and may run concurrently.
    """

    title: str
    command: list[str]
    group: str = ""

    @property
    def line(self) -> str:
        """The command as a shell line."""
        return shlex.join(self.command)


def run_steps(
    kind: str, steps: Sequence[Step], output: Path, *, console: Console, jobs: int = 1, **content: Any
) -> Mapping[str, float]:
    """Run steps in order, and record the finished ones in `<output>/<kind>.json`.

    A finished step is identified by its command line and by the files of data, features and weights that the line
    names; it runs again if one of these was replaced.

    Args:
        kind: Kind of the run, which names the manifest.
        steps: Steps in order.
        output: Folder for `<kind>.json` and `logs`.
        console: Console to print to.
        jobs: Number of concurrent steps of a group.
        content: Further fields of the manifest.

    Returns:
        Command line → duration in seconds, of all finished steps, including those of earlier runs.

    Raises:
        UserError: the extra `train` is needed and not installed; or a step failed, and the message ends with the end
            of its log.
    """
    if any(step.command[0] == TRAINER for step in steps):
        check_extra("train", "Training a language model", ("llamafactory",))
    record = output / f"{kind}.json"
    known = read_manifest(record, PipelineManifest) if record.is_file() else PipelineManifest(kind=kind)
    seconds, files = dict(known.seconds), dict(known.files)
    lock = Lock()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with notebook_safe_progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=len(steps))

        def do(number: int, step: Step) -> None:
            # Records of earlier versions have no files.
            done_before = step.line in seconds and files.get(step.line) in (None, named_files(step.command))
            text = f"[bold]{number}. {escape(step.title)}[/bold]\n   $ {escape(step.line)}"
            # A single call, because steps of a group print concurrently.
            console.print(text + ("\n   already done" if done_before else ""), highlight=False, soft_wrap=True)
            if not done_before:
                progress.update(task, description=step.title)
                took = _run(step, output / "logs" / f"{number:02d}.log")
                console.print(f"   {f'{number}. took ' if jobs > 1 and step.group else ''}{took:.0f} s")
                with lock:
                    seconds[step.line], files[step.line] = took, named_files(step.command)
                    write_manifest(record, PipelineManifest.new(kind, **content, seconds=seconds, files=files))
            progress.advance(task)

        for _, group in groupby(enumerate(steps, 1), lambda one: one[1].group or one[0]):
            _run_group(do, list(group), jobs)
    return seconds


def named_files(command: Sequence[str]) -> str:
    """Fingerprint of the data, feature and weight files that a command names, by name, size and modification time.

    Files that later steps write into the folder of an earlier one (records, logs, decisions) do not count.
    """
    from ra_hmd.features.test_lock import FINAL_RECORD  # imported here, as printing the commands does not need it

    places = dict.fromkeys(Path(value) for word in command[1:] for value in (word, word.partition("=")[2]) if value)
    found = []
    for place in places:
        if place.exists():
            inside = [place] if place.is_file() else sorted(place.rglob("*"))
            found += [file for file in inside if file.suffix in _CONTENT and file.name != FINAL_RECORD]
    return sha256_bytes(*(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}".encode() for file in found))


def _run_group(do: Callable[[int, Step], None], group: Sequence[tuple[int, Step]], jobs: int) -> None:
    """Run numbered steps, `jobs` at a time; after a failure or Ctrl-C no further step starts."""
    stop = Event()

    def unless_stopped(number: int, step: Step) -> None:
        if stop.is_set():
            return
        try:
            do(number, step)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in [pool.submit(unless_stopped, number, step) for number, step in group]:
                future.result()
        finally:
            stop.set()


def overrides(values: Mapping[str, object]) -> list[str]:
    """`key=value` words, as `llamafactory-cli train` and `ra-hmd stage2` take them."""
    return [f"{key}={value}" for key, value in values.items()]


def ra_hmd(*words: str, **options: object) -> list[str]:
    """Words of a `ra-hmd` command; underscores in option names become hyphens, and True is an option without value."""
    given = (
        (f"--{key.replace('_', '-')}", *(() if value is True else (str(value),))) for key, value in options.items()
    )
    return ["ra-hmd", *words, *(word for option in given for word in option)]


def configs_folder(name: str) -> Path:
    """Folder `name` of the YAML files, in the checkout or where the wheel installed it."""
    places = shipped_configs()
    for place in places:
        if (place / name).is_dir():
            here = Path.cwd()
            return place.relative_to(here) / name if place.is_relative_to(here) else place / name
    raise UserError(f"The {name}'s YAML files are missing; looked in {' and '.join(map(str, places))}.")


def _run(step: Step, log: Path) -> float:
    """Run a command of this environment with its output in `log`, and return its duration in seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    binaries = Path(sys.executable).parent
    env = os.environ | {"PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"}
    env.setdefault("OMP_NUM_THREADS", "1")  # more threads slow down operations on such small tensors
    start = time.monotonic()
    env.setdefault("CUDA_VISIBLE_DEVICES", "0")  # on several GPUs the same configuration would train for fewer steps
    with log.open("w", encoding="utf-8") as file:
        command = [str(binaries / step.command[0]), *step.command[1:]]
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=env, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise UserError(f"Step {step.title!r} failed (exit code {done.returncode}); the end of {log}:\n{tail}")
    return round(time.monotonic() - start, 1)
