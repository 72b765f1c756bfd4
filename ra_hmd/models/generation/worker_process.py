"""A process that answers each JSON line by one: vLLM, which may need another environment than this package."""

import json
import os
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ra_hmd.core.errors import UserError

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class WorkerProcess:
    """A process of vLLM; it ends when this object is gone.

    Args:
        command: Its program and arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # What torchrun says of ranks is not for vLLM.
        kept = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept)
        self._close = weakref.finalize(self, _end, self.process)

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Its answer to a line.

        Raises:
            UserError: it ended.
        """
        assert self.process.stdout is not None
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._close()
            raise UserError(
                f"vLLM ended (exit code {self.process.returncode}); its output is above. If memory was short, give it "
                "more GPUs (--tensor-parallel-size, --engine-gpus), or use transformers (--engine, --backend)."
            )
        return json.loads(line)


def _end(process: "subprocess.Popen[str]") -> None:
    """Close the input of a worker process, which ends it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
