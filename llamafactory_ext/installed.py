"""Packages that a training asks for: a sentence where one is missing, before anything is loaded."""

from collections.abc import Sequence
from typing import Any

from llamafactory_ext.launchers import option
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra

_NEEDED = {"deepspeed": "deepspeed", "enable_liger_kernel": "liger_kernel", "quantization_bit": "bitsandbytes"}
"""Argument of LLaMA-Factory to the module that it needs."""
_NO = ("", "none", "null", "false", "0")


def check_asked_packages(args: Any) -> None:
    """End the program with a sentence where the arguments of a training ask for a package that is not installed.

    Args:
        args: Arguments as LLaMA-Factory has them: a dictionary or words.

    Raises:
        SystemExit: with the sentence.
    """
    method = option(args, "quantization_method")
    for name, module in _NEEDED.items():
        value = option(args, name)
        if value is None or str(value).lower() in _NO or (name == "quantization_bit" and method not in (None, "bnb")):
            continue
        end_without(f"`{name}: {value}`", (module,))


def end_without(purpose: str, modules: Sequence[str] = (), extra: str = "train") -> None:
    """End the program with the sentence of `check_extra`; the host would print a traceback.

    Raises:
        SystemExit: a package is missing.
    """
    try:
        check_extra(extra, purpose, modules)
    except UserError as error:
        raise SystemExit(f"ra-hmd: {error}") from None
