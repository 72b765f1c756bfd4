"""The package's extras: what each is for, what it needs, and the sentence of a command that lacks one.

Standard library only; nothing of an extra is imported to find out whether it is there.
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ra_hmd.core.errors import UserError


@dataclass(frozen=True)
class Extra:
    """One extra.

    Attributes:
        purpose: What it is for, as a phrase.
        modules: Modules that it needs, and the distribution that has each.
        linux: Modules among these that are needed on Linux alone.
    """

    purpose: str
    modules: Mapping[str, str]
    linux: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Distributions of the extra that are not installed."""
        needed = {name: package for name, package in self.modules.items() if _wanted(name, self.linux)}
        return [package for name, package in needed.items() if not is_importable(name)]


_LMM = {
    "llamafactory": "llamafactory",
    "peft": "peft",
    "qwen_vl_utils": "qwen-vl-utils",
    "bitsandbytes": "bitsandbytes",
}
_SERVE = {
    "fastapi": "fastapi",
    "fastapi_offline": "fastapi-offline",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "sqlalchemy": "sqlalchemy",
    "alembic": "alembic",
}
_MILVUS = {"pymilvus": "pymilvus", "psutil": "psutil", "setuptools": "setuptools"}

EXTRAS: Mapping[str, Extra] = {
    "lmm": Extra("language models: extraction and verdicts of a Stage 1 run", _LMM),
    "train": Extra(
        "training language models (Stage 1)",
        {**_LMM, "deepspeed": "deepspeed", "liger_kernel": "liger-kernel", "tensorboard": "tensorboard"},
        linux=("deepspeed", "liger_kernel"),
    ),
    "serve": Extra("the HTTP API and the moderators' desk", _SERVE),
    "postgresql": Extra("cases of several desks in PostgreSQL", {"psycopg": "psycopg"}),
    "ocr": Extra("reading captions from pictures", {"rapidocr": "rapidocr", "onnxruntime": "onnxruntime"}),
    "hash": Extra("PDQ hashes of known memes", {"pdqhash": "pdqhash"}),
    "milvus": Extra("example banks in Milvus", _MILVUS),
    "s3": Extra("data and banks at s3://", {"s3fs": "s3fs"}),
    "gcs": Extra("data and banks at gs://", {"gcsfs": "gcsfs"}),
    "ray": Extra("work on a Ray cluster", {"ray": "ray"}),
    "judge": Extra("models behind an OpenAI-compatible endpoint", {"openai": "openai"}),
    "benchmarks": Extra("benchmarks of lmms-eval", {"lmms_eval": "lmms-eval"}),
}
"""Extras of people who use the package, in the order in which `ra-hmd doctor` lists them."""


def check_extra(extra: str, purpose: str, modules: Sequence[str] = ()) -> None:
    """Raise `UserError` unless what a piece of work needs of an extra is installed.

    Args:
        extra: Name of the extra.
        purpose: What needs it; the beginning of a sentence.
        modules: Modules of the extra that the work cannot do without; default: all.

    Raises:
        UserError: names the extra, the missing packages and the command that installs them.
    """
    stated = EXTRAS[extra]
    if all(is_importable(name) for name in modules or stated.modules if _wanted(name, stated.linux)):
        return
    raise UserError(
        f"{purpose} needs the extra `{extra}` ({', '.join(stated.missing())} missing): pip install 'ra-hmd[{extra}]'."
    )


def is_importable(module: str) -> bool:
    """Whether a top-level module can be found; nothing is imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _wanted(module: str, linux: Sequence[str]) -> bool:
    return sys.platform == "linux" or module not in linux
