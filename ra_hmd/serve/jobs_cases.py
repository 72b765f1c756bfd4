"""Cases that a policy makes of a job's verdicts, where the job asks for it."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from ra_hmd.data.meme import Meme
from ra_hmd.inference.batch_judging import MemeChunk
from ra_hmd.inference.batch_reader import BatchRow
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.batching import ServedVerdict
from ra_hmd.serve.case_service import CaseService
from ra_hmd.serve.jobs import Job


class JobCases:
    """Shows the verdicts of a job to the policy, a chunk at a time, before the chunk is written.

    What is drawn at random depends on the job and the chunk alone, and a case is known by its row: a chunk that is
    judged again, because the process was killed, makes no second case.

    Args:
        job: The job.
        owner: Name of the key that sent it, if there is one.
        cases: The cases of the service.
    """

    def __init__(self, job: Job, owner: str | None, cases: CaseService) -> None:
        self._job, self._source, self._cases = job, owner or "api", cases
        self._rows: dict[int, list[BatchRow]] = {}
        self._verdicts: dict[int, Verdict] = {}

    def read(self, chunks: Iterator[MemeChunk]) -> Iterator[MemeChunk]:
        """Pass chunks on, and keep their rows until they are judged."""
        for chunk in chunks:
            self._rows[chunk.number] = chunk.rows
            yield chunk

    def note(self, verdicts: Sequence[Verdict], answers: Sequence[dict[str, Any]]) -> None:
        """Keep verdicts until the lines with their answers are there."""
        self._verdicts |= {id(answer): verdict for verdict, answer in zip(verdicts, answers, strict=True)}

    def add(self, number: int, lines: Sequence[dict[str, Any]]) -> None:
        """Make cases of the verdicts of a chunk that the policy chooses. `lines` has a line for each of its rows."""
        served = [
            (place, self._served(row, self._verdicts[id(line["answer"])], line["answer"]["version"]))
            for place, (row, line) in enumerate(zip(self._rows.pop(number), lines, strict=True))
            if "answer" in line
        ]
        self._verdicts = {}
        chosen = self._cases.choose([one for _, one in served], self._seed(number))
        places = {id(one): place for place, one in served}
        keys = [f"job {self._job.id} {number} {places[id(one.served)]}" for one in chosen]
        self._cases.add_chosen(chosen, self._source, keys)

    def _seed(self, number: int) -> int:
        seed = self._cases.draw.policy.audit_seed if self._cases.draw is not None else None
        return int.from_bytes(hashlib.sha256(f"{seed} {self._job.id} {number}".encode()).digest()[:8])

    def _served(self, row: BatchRow, verdict: Verdict, version: dict[str, Any]) -> ServedVerdict:
        assert row.meme is not None  # it has a verdict
        # The picture's content: its file goes with the job, and a case keeps a copy.
        return ServedVerdict(Meme(row.meme.id, row.meme.path.read_bytes(), verdict.text), verdict, version)
