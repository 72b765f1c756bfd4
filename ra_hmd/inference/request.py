"""A request to `ra-hmd predict` or `ra-hmd explain`: verdicts on images, on a file of memes, or on a feature store."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ra_hmd.core.config import Settings
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.workers.settings import WorkerSettings
from ra_hmd.inference.options import DetectorOptions, InputOptions, RationaleOptions, VotingOptions

if TYPE_CHECKING:
    from ra_hmd.inference.detector import Detector
    from ra_hmd.inference.explainer import Explainer

_VOTE = tuple(VotingOptions.model_fields)


class PredictionRequest(Settings):
    """A request for verdicts.

    Attributes:
        checkpoint: Folder with a head.
        inputs: The memes or features, and where verdicts are written.
        detector: How the detector is opened.
        rationale: How verdicts are explained; None: no rationales.
        engine: Where the memes of a file or folder are judged.
    """

    TITLE: ClassVar[str] = "prediction"

    checkpoint: Path
    inputs: InputOptions
    detector: DetectorOptions
    rationale: RationaleOptions | None = None
    engine: WorkerSettings = WorkerSettings()

    def run(self, command: str) -> Iterator[str]:
        """Print a table, or write files and print their names. Yields notes for the user.

        Args:
            command: The command line, for manifests.

        Raises:
            UserError: options that contradict each other, all listed; see `predict_features`, `predict_files` and
                `judge_images`.
        """
        self._check()
        if self.inputs.queries is not None:
            yield from self._predict_features(self.inputs.queries, command)
        elif self.inputs.source is not None:
            yield from self._predict_files(self.inputs.source, command)
        else:
            yield from self._print_verdicts()

    def _check(self) -> None:
        inputs, detector = self.inputs, self.detector
        kinds = {"IMAGE": inputs.images, "--input": inputs.source, "--queries": self.inputs.queries}
        given = [name for name, value in kinds.items() if value]
        if len(given) != 1:
            found = " and ".join(given) + " are given" if given else "none is given"
            stores = "" if self.rationale else " or --queries STORE"
            raise UserError(f"Give one of IMAGE…, --input FILE{stores}; {found}.")
        kind = given[0]
        options: dict[str, tuple[Any, tuple[str, ...]]] = {
            "--text": (inputs.texts, ("IMAGE",)),
            "--json": (inputs.as_json, ("IMAGE",)),
            "--output": (inputs.output, ("--input", "--queries")),
            "--format": (self.inputs.style, ("--input", "--queries")),
            "--engine": (self.engine.engine != "local", ("--input",)),
            "--media-dir": (inputs.media_dir, ("--input",)),
            "--abstain": (detector.abstain is not None, ("IMAGE", "--input")),
            "--backbone": (detector.backbone, ("IMAGE", "--input")),
            "--base-model": (detector.base_model, ("IMAGE", "--input")),
            "--batch-size": (detector.batch_size, ("IMAGE", "--input")),
            "--dtype": (detector.dtype, ("IMAGE", "--input")),
            "--fold-captions": (detector.fold_captions, ("IMAGE", "--input")),
            "--check-captions": (detector.check_captions, ("IMAGE", "--input")),
            "--transforms": (detector.transforms, ("IMAGE", "--input")),
            "--known-memes": (detector.known_memes is not None, ("IMAGE", "--input")),
            "--backend": (detector.backend != "transformers", ("IMAGE", "--input")),
        }
        problems = [f"{name} goes with {' or '.join(allowed)}, not with {kind}; leave it out."
                    for name, (value, allowed) in options.items() if value and kind not in allowed]  # fmt: skip
        if kind != "IMAGE" and inputs.output is None:
            problems.append(f"{kind} needs --output: the file to write.")
        changed = any(getattr(detector, name) != DetectorOptions.model_fields[name].default for name in _VOTE)
        if kind != "--queries" and detector.bank is None and changed:
            problems.append("The options of the vote need --bank: the labelled memes that vote.")
        if self.rationale is not None and inputs.output is not None and inputs.output.suffix != ".jsonl":
            problems.append(f"Rationales are written as JSON Lines: --output {inputs.output} must end in .jsonl.")
        raise_all(problems, "Options that do not go together")
        if self.rationale is not None:
            from ra_hmd.inference.explainer import check_neighbours

            self.rationale.check()
            has_lookup = bool(self.rationale.memes)
            check_neighbours(self.rationale.neighbours, detector.bank, detector.topk, has_lookup=has_lookup)

    def _predict_features(self, queries: Path, command: str) -> Iterator[str]:
        from ra_hmd.inference.batch_features import predict_features  # needs no model

        assert self.inputs.output is not None
        detector = self.detector
        done = predict_features(self.checkpoint, queries, self.inputs.output, head=detector.head or "lrc",
                                style=self.inputs.style or "jsonl", bank=detector.bank, voting=detector.voting,
                                views=detector.views, thresholds=detector.thresholds, command=command)  # fmt: skip
        yield from done["notes"]
        print(f"{self.inputs.output}: {done['rows']} memes")

    def _predict_files(self, source: Path, command: str) -> Iterator[str]:
        from ra_hmd.inference.batch import predict_files
        from ra_hmd.inference.writers import choose_format

        output = self.inputs.output
        assert output is not None
        style = choose_format(output, self.inputs.style)
        detector, explainer = self._open(lazy=self.engine.engine != "local")
        done = predict_files(detector, source, output, style=style, media_dir=self.inputs.media_dir,
                             options=self._recorded(detector), explainer=explainer, engine=self.engine,
                             open_detector=self._open, command=command)  # fmt: skip
        if not done:  # another rank merges
            return
        yield from done["notes"]
        yield from explainer.notes if explainer else ()
        if not done["judged"]:
            raise UserError(
                f"None of the {done['rejected']} rows of {source} could be judged; "
                f"{output}.rejected.jsonl has the reason for each."
            )
        if done["rejected"]:
            yield f"{done['rejected']} rows could not be judged: {output}.rejected.jsonl"
        print(f"{output}: {done['judged']} memes")

    def _print_verdicts(self) -> Iterator[str]:
        from ra_hmd.inference.console_output import as_lines, as_text, check_images, judge_images

        check_images(self.inputs.images, self.inputs.texts)
        detector, explainer = self._open()
        verdicts = judge_images(detector, self.inputs.images, self.inputs.texts, explainer)
        yield from detector.scorer.notes(detector.head)
        if explainer is not None:
            from ra_hmd.inference.explainer import NOTE

            yield from explainer.notes
            yield NOTE
        if self.inputs.as_json:
            print(as_lines(verdicts))
        else:
            print(as_text(verdicts))

    def _open(self, *, lazy: bool = False) -> "tuple[Detector, Explainer | None]":
        detector = self.detector.open(self.checkpoint, lazy=lazy)
        return detector, None if self.rationale is None else self.rationale.open(detector)

    def _recorded(self, detector: "Detector") -> dict[str, Any]:
        """Options that open the detector, for the manifest; it records the rest itself."""
        return {
            "checkpoint": str(self.checkpoint),
            "bank": self.detector.bank,
            "thresholds": self.detector.thresholds,
            "backbone": self.detector.backbone,
            "base_model": self.detector.base_model,
            "dtype": self.detector.dtype,
            **self.detector.defences.described(),
            **({"engine": detector.engine} if detector.engine is not None else {}),
            **({"hash_lists": list(map(str, self.detector.hash_lists))} if self.detector.hash_lists else {}),
            **({"memes": list(map(str, self.rationale.memes))} if self.rationale else {}),
        }
