"""Environment variables that send LLaMA-Factory where stage `sft-classifier` does not exist.

Standard library only, and nothing of the host: it runs before the host's launchers are imported.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAGE = "sft-classifier"

_ENGINES = {
    "USE_MCA": "the Megatron engine of mcore_adapter",
    "USE_MEGATRON_BRIDGE": "the Megatron bridge",
}
_LAUNCHERS = {"USE_V1": "the launcher of its version 1"}


def diverted(*, launched: bool = True, environment: Mapping[str, str] | None = None) -> list[str]:
    """One sentence for each variable that keeps our stage from running.

    Args:
        launched: Also those that only `llamafactory-cli` obeys.
        environment: Default: this process's.
    """
    environment = os.environ if environment is None else environment
    variables = _ENGINES | (_LAUNCHERS if launched else {})
    return [
        f"{name}={environment[name]} makes LLaMA-Factory take {what}, which has no stage {STAGE}: `unset {name}`."
        for name, what in variables.items()
        if environment.get(name, "").lower() in ("1", "true", "y")  # what the host takes for yes
    ]


def refuse_diversion(words: Sequence[str], *, launched: bool = True) -> None:
    """End the program with a sentence where `words` ask for our stage and a variable leads elsewhere.

    Args:
        words: The command line after the program's name.
        launched: As for `diverted`.

    Raises:
        SystemExit: with the sentences.
    """
    problems = diverted(launched=launched)
    if problems and asked_stage(words) == STAGE:
        raise SystemExit("ra-hmd: " + " ".join(problems))


def prepare_restarts(words: Sequence[str]) -> None:
    """Have every restart by torchrun meet at a store of its own, where `words` ask for our stage under `RDZV_ID`.

    torchrun (torch 2.14) keeps one store over all restarts, where ranks find what those before them left, and may wait
    for each other for ever.
    """
    if os.environ.get("RDZV_ID") and asked_stage(words) == STAGE:
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


def asked_stage(words: Sequence[str]) -> str | None:
    """The stage that a command line of LLaMA-Factory asks for: in its YAML or JSON file, or in an option."""
    stage = None
    for index, word in enumerate(words):
        if word.endswith((".yaml", ".yml", ".json")):
            stage = stage or _stage_of(Path(word))
        elif word.startswith(("stage=", "--stage=")):
            return word.partition("=")[2]
        elif word == "--stage" and index + 1 < len(words):
            return words[index + 1]
    return stage


def _stage_of(path: Path) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the host says what is wrong with its file
    return values.get("stage") if isinstance(values, dict) else None


def option(args: Any, name: str) -> Any:
    """The value of an argument in a dictionary (YAML) or in a list of command-line words; None if it is not there."""
    if isinstance(args, dict):
        return args.get(name)
    words = [str(word) for word in args or []]
    for index, word in enumerate(words):
        if word == f"--{name}" and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None
