"""What `ra-hmd predict` and `explain` are asked for: pictures, a file of memes, a feature store; and their options."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ra_hmd.core.config import choose
from ra_hmd.core.dtype import DType
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.retrieval.voting import Voting

if TYPE_CHECKING:
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer


@dataclass(frozen=True)
class Explaining:
    """The options of `ra-hmd explain` that `ra-hmd predict` has not.

    Attributes:
        policy: The policy's text, if there is one.
        question: The question's text, if it is not `QUESTION`.
        neighbours: `--neighbours`.
        memes: `--memes`.
        engine: `--engine`.
        adapter: False: `--without-adapter`.
        max_new_tokens: `--max-new-tokens`.
        tensor_parallel_size: `--tensor-parallel-size`.

    Raises:
        UserError: an engine that is not there, texts that cannot be used.
    """

    policy: str | None
    question: str | None
    neighbours: int
    memes: list[Path]
    engine: str
    adapter: bool
    max_new_tokens: int
    tensor_parallel_size: int

    def __post_init__(self) -> None:
        from ra_hmd.inference.explainer import check_question
        from ra_hmd.models.generation.engines import choose_engine

        choose_engine(self.engine)
        if self.question is not None:
            check_question(self.question, self.policy is not None, self.neighbours)
        if self.memes and not self.neighbours:
            raise UserError("--memes tells of neighbours; say with --neighbours how many are shown.")
        for place in self.memes:
            if not place.exists():
                raise UserError(f"--memes {place} does not exist; give an imported folder, or a data file.")

    def open(self, detector: "Detector") -> "Explainer":
        """Who explains the verdicts of `detector`."""
        from ra_hmd.inference.explainer import QUESTION, Explainer
        from ra_hmd.inference.meme_lookup import open_meme_lookup

        return Explainer.of(
            detector,
            engine=self.engine,
            adapter=self.adapter,
            gallery=open_meme_lookup(self.memes, detector.model) if self.memes else None,
            neighbours=self.neighbours,
            tensor_parallel_size=self.tensor_parallel_size,
            policy=self.policy,
            question=self.question or QUESTION,
            max_new_tokens=self.max_new_tokens,
        )


@dataclass(frozen=True)
class Request:
    """The options of the command, under their names there; None, empty and False are options that were not given.

    Attributes:
        source: `--input`.
        style: `--format`.
        as_json: `--json`.
        explaining: Of `ra-hmd explain`.

    Raises:
        UserError: options that contradict each other, all listed.
    """

    checkpoint: Path
    images: list[Path]
    texts: list[str]
    source: Path | None
    queries: Path | None
    output: Path | None
    head: str | None
    style: str | None
    bank: str | None
    thresholds: str
    voting: Voting
    abstain: float | None
    backbone: str | None
    base_model: str | None
    batch_size: int | None
    dtype: str | None
    media_dir: Path | None
    as_json: bool
    explaining: Explaining | None = None

    def __post_init__(self) -> None:
        kinds = {"IMAGE": self.images, "--input": self.source, "--queries": self.queries}
        asked = [name for name, value in kinds.items() if value]
        if len(asked) != 1:
            found = " and ".join(asked) + " are given" if asked else "none is given"
            stores = "" if self.explaining else " or --queries STORE"
            raise UserError(f"Give one of IMAGE…, --input FILE{stores}; {found}.")
        kind = asked[0]
        options = {
            "--text": (self.texts, ("IMAGE",)),
            "--json": (self.as_json, ("IMAGE",)),
            "--output": (self.output, ("--input", "--queries")),
            "--format": (self.style, ("--input", "--queries")),
            "--media-dir": (self.media_dir, ("--input",)),
            "--abstain": (self.abstain is not None, ("IMAGE", "--input")),
            "--backbone": (self.backbone, ("IMAGE", "--input")),
            "--base-model": (self.base_model, ("IMAGE", "--input")),
            "--batch-size": (self.batch_size, ("IMAGE", "--input")),
            "--dtype": (self.dtype, ("IMAGE", "--input")),
        }
        problems = [f"{name} goes with {' or '.join(kinds)}, not with {kind}; leave it out."
                    for name, (given, kinds) in options.items() if given and kind not in kinds]  # fmt: skip
        if kind != "IMAGE" and self.output is None:
            problems.append(f"{kind} needs --output: the file to write.")
        if kind != "--queries" and self.bank is None and self.voting != Voting():
            problems.append("The options of the vote need --bank: the labelled memes that vote.")
        if self.explaining is not None and self.output is not None and self.output.suffix != ".jsonl":
            problems.append(f"Rationales are written as JSON Lines: --output {self.output} must end in .jsonl.")
        raise_all(problems, "Options that do not go together")
        if self.explaining is not None:
            from ra_hmd.inference.explainer import check_neighbours

            told = self.explaining
            check_neighbours(told.neighbours, self.bank, self.voting.topk, known=bool(told.memes))
        if self.dtype is not None:
            choose("--dtype", self.dtype, get_args(DType))

    def answer(self, command: str) -> Iterator[str]:
        """Do it: print a table, or write files and print where; yields what else a reader must know."""
        # Each way imports what it needs: models and their words take seconds.
        if self.queries is not None:
            from ra_hmd.inference.batch_features import predict_features

            done = predict_features(self.checkpoint, self.queries, self.output, head=self.head or "lrc",
                           style=self.style or "jsonl", bank=self.bank, voting=self.voting,
                           thresholds=self.thresholds, command=command)  # fmt: skip
            yield from done["notes"]
            print(f"{self.output}: {done['rows']} memes")
        elif self.source is not None:
            from ra_hmd.inference.batch import predict_files
            from ra_hmd.inference.writers import choose_format

            choose_format(self.output, self.style)
            detector = self.detector()
            explainer = self.explainer(detector)
            done = predict_files(detector, self.source, self.output, style=self.style, media_dir=self.media_dir,
                                 options=self.options, explainer=explainer, command=command)  # fmt: skip
            if done:  # else another rank merges
                yield from done["notes"]
                yield from explainer.notes if explainer else ()
                if not done["judged"]:
                    raise UserError(
                        f"None of the {done['rejected']} rows of {self.source} could be judged; "
                        f"{self.output}.rejected.jsonl says why of each."
                    )
                if done["rejected"]:
                    yield f"{done['rejected']} rows could not be judged: {self.output}.rejected.jsonl"
                print(f"{self.output}: {done['judged']} memes")
        else:
            from rich.console import Console

            from ra_hmd.inference.console_output import as_lines, as_table, check_pictures, judge_pictures

            check_pictures(self.images, self.texts)
            detector = self.detector()
            explainer = self.explainer(detector)
            found = judge_pictures(detector, self.images, self.texts, explainer)
            yield from detector.scorer.notes(detector.head)
            if explainer is not None:
                from ra_hmd.inference.explainer import NOTE

                yield from explainer.notes
                yield NOTE
            if self.as_json:
                print(as_lines(found))
            else:
                Console().print(as_table(found))

    @property
    def options(self) -> dict[str, str | None]:
        """How the detector is opened, apart from what it states itself."""
        return {
            "checkpoint": str(self.checkpoint),
            "bank": self.bank,
            "thresholds": self.thresholds,
            "backbone": self.backbone,
            "base_model": self.base_model,
            "dtype": self.dtype,
            **({"memes": list(map(str, self.explaining.memes))} if self.explaining else {}),
        }

    def explainer(self, detector: "Detector") -> "Explainer | None":
        """Who explains, if that is asked for."""
        return None if self.explaining is None else self.explaining.open(detector)

    def detector(self) -> "Detector":
        """Open what shall judge."""
        from ra_hmd.inference.detector import Detector

        return Detector.from_run(
            self.checkpoint,
            self.bank,
            backbone=self.backbone,
            base_model=self.base_model,
            head=self.head,
            voting=self.voting,
            thresholds=self.thresholds,
            abstain=self.abstain or 0.0,
            batch_size=self.batch_size or 16,
            dtype=self.dtype,
        )
