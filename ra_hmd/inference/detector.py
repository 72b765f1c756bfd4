"""From a meme to a verdict: the one object that a command line, a service and a console ask.

Shapes: Q memes, B memes of a batch, C outputs of the problem (1 if binary).
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator
from PIL.Image import Image

from ra_hmd.bank.bank import Bank
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.config import choose
from ra_hmd.core.dtype import DType
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import Head
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.text import well_formed
from ra_hmd.features.extraction import FeatureModel, batch_columns, features_from
from ra_hmd.features.feature_model import open_feature_model
from ra_hmd.inference.types import Explain, PreparedMeme, Verdict
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.evidence import plain_score, vote_evidence
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.scores import DecisionRule, ScoredSet


def _decider(scorer: Scorer, head: Head | None, abstain: float) -> Head:
    """Who decides. Raises `UserError`: a head that is not there, a band that cannot be."""
    head = head or ("lrc" if scorer.examples is None else "rkc")
    choose("head", head, get_args(Head))
    if head == "rkc" and scorer.examples is None:
        raise UserError("The head `rkc` needs a bank: the labelled memes that vote.")
    if not 0 <= abstain < 0.5:
        raise UserError(f"abstain is {abstain}, it must lie in [0, 0.5).")
    kind = scorer.model.config.problem.kind
    if abstain and kind != "binary":
        raise UserError(f"abstain is for binary heads; this one decides `{kind}`.")
    return head


class Detector:
    """A trained system, opened to judge memes: LMM or encoder, head, bank and rules.

    Every score comes from one forward pass of a meme, by the same code as `ra-hmd extract` (or `encode`) and
    `ra-hmd evaluate`, and depends on no other meme.

    Args:
        model: What gives memes their features.
        scorer: Head, bank, thresholds, calibration.
        head: Who decides; default is the RKC with a bank and the LRC without.
        abstain: Width of the band around the threshold, in probability, in which a meme is left to a person: its
            probability is less than this from that of the threshold. Binary heads.
        batch_size: Memes per forward pass.

    Raises:
        UserError: a head that is not there, a band that cannot be.
    """

    def __init__(
        self,
        model: FeatureModel,
        scorer: Scorer,
        head: Head | None = None,
        abstain: float = 0.0,
        batch_size: int = 16,
    ) -> None:
        self.model, self.scorer, self.batch_size = model, scorer, batch_size
        self.problem = scorer.model.config.problem
        self.head, self.abstain = _decider(scorer, head, abstain), abstain
        self._head_sha256 = sha256_file(scorer.checkpoint / HEAD_WEIGHTS)
        self._reader: Any = None
        self._reading = threading.Lock()

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        bank: str | Path | None = None,
        *,
        backbone: str | Path | None = None,
        base_model: str | None = None,
        head: Head | None = None,
        voting: Voting | None = None,
        thresholds: Literal["stored", "official"] = "stored",
        abstain: float = 0.0,
        batch_size: int = 16,
        dtype: DType | None = None,
        device: str | torch.device | None = None,
    ) -> "Detector":
        """Open what was trained.

        Args:
            run: Folder with a head: a Stage 1 run, a Stage 2 output, or a head on an encoder's features.
            bank: Labelled memes that vote: a feature store, or an example bank. Without it there is no RKC.
            backbone: Stage 1 run, or encoder, that the head stands on, if it is not where the run says.
            base_model: Where the base model of an LMM lies now.
            head: Who decides.
            voting: The vote; by default the official one.
            thresholds: `stored` beside the head, if there are any, or `official`.
            abstain: See `Detector`.
            batch_size: Memes per forward pass.
            dtype: Of the LMM's or encoder's computation; default is as the features were made for an encoder, and
                that of the weights for an LMM.
            device: Where everything runs; by default what accelerate finds.

        Raises:
            UserError: folders that are missing, or do not belong together.
        """
        device = torch.device(device) if device is not None else Accelerator().device
        scorer = Scorer.open(run, bank, voting, thresholds=thresholds, device=device)
        opened = open_feature_model(run, backbone=backbone, base_model=base_model, dtype=dtype)
        scorer.check_origin(opened.place, opened.fingerprint)
        head = _decider(scorer, head, abstain)  # before a large model is loaded
        return cls(opened.load(device), scorer, head, abstain, batch_size)

    @property
    def version(self) -> dict[str, Any]:
        """What the answers depend on: `run`, `head_sha256`, and `bank` with `place`, `sha256`, perhaps `version`."""
        return {"run": str(self.scorer.checkpoint), "head_sha256": self._head_sha256, "bank": self.scorer.state}

    def refresh(self) -> None:
        """Go to the newest version of an example bank, which another process may have changed."""
        self.scorer = self.scorer.refreshed()

    def __call__(self, queries: Sequence[Meme], explain: Explain | None = None) -> list[Verdict]:
        """Judge memes, in their order.

        Args:
            queries: The memes.
            explain: Explains the verdicts, such as an `Explainer`; no score depends on it.

        Raises:
            UserError: a picture that cannot be opened or used, a caption that does not fit, names the meme; no LMM
                that could explain.
        """
        prepared = [self.prepare(query) for query in queries]
        found = self.judge(prepared)
        if explain is None:
            return found
        told = explain(found, [meme.picture for meme in prepared])
        return [replace(one, **words.fields()) for one, words in zip(found, told, strict=True)]

    def prepare(self, query: Meme) -> PreparedMeme:
        """A meme as `judge` takes it: decoded, resized and tokenised, on the CPU.

        Raises:
            UserError: see `__call__`.
        """
        try:
            image = query.load_image()
            text, source = (well_formed(query.text), "given") if query.text is not None else self._read(image)
            return PreparedMeme(query.id, text, source, self.model.encode(text, image), content_hash(image, text))
        except ValueError as error:  # a UserError, or what the model's own code says of the image
            raise UserError(f"meme {query.id!r}: {error}") from error

    @property
    def prompt(self) -> PromptTemplate:
        """The question of the LMM that judges; an encoder has none, and reads records of the official one."""
        run = getattr(self.model, "run", None)
        return PromptTemplate() if run is None else run.settings.prompt

    def judge(self, memes: Sequence[PreparedMeme]) -> list[Verdict]:
        """Judge prepared memes, in their order; those of similar length share a forward pass."""
        return self.detections(memes, self.score(memes)) if memes else []

    def score(self, memes: Sequence[PreparedMeme]) -> ScoredSet:
        """Scores and embeddings of one or more prepared memes, in their order; from one forward pass of each."""
        order = sorted(range(len(memes)), key=lambda row: self.model.length(memes[row].item))
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            parts.append(batch_columns(self.model, self.model.collate([memes[row].item for row in rows])))
        columns: dict[str, Any] = {
            name: np.concatenate([part[name] for part in parts])[np.argsort(order)] for name in parts[0]
        }
        columns["contents"] = [meme.content for meme in memes]
        shape = (len(memes), self.problem.outputs) if self.problem.kind == "multi_label" else len(memes)
        labels = np.full(shape, UNLABELLED, dtype=np.int64)
        features = features_from([meme.id for meme in memes], [meme.text for meme in memes], labels, columns)
        return self.scorer("the memes", features)

    def detections(self, memes: Sequence[PreparedMeme], scored: ScoredSet) -> list[Verdict]:
        """What is said of memes that `score` has scored, with the bank as it was then."""
        return list(self._detections(memes, scored))

    def _read(self, image: Image) -> tuple[str, str]:
        """The words on a picture, and what read them."""
        from ra_hmd.data.ocr import open_engine, read_text

        with self._reading:  # `prepare` runs in several threads of a service, the engine in one at a time
            if self._reader is None:
                self._reader = open_engine()
            engine, source = self._reader
            return read_text(engine, image)["text"], source

    def _detections(self, memes: Sequence[PreparedMeme], scored: ScoredSet) -> Iterator[Verdict]:
        if self.head not in scored.scores:
            raise UserError(f"The head `{self.head}` has no answer: {' '.join(scored.notes)}")
        verdicts = {head: scored.verdicts(head) for head in scored.scores}
        probabilities = {head: scored.probabilities(head) for head in scored.scores}
        unsure = self._unsure(scored, probabilities[self.head])
        identical = self.scorer.identical(scored)
        for row, (meme, neighbours) in enumerate(zip(memes, self._evidence(scored), strict=False)):
            decided = {head: values[row].tolist() for head, values in verdicts.items()}
            if "rkc" in decided and scored.abstained[row]:
                decided["rkc"] = None
            known = identical[row]
            verdict = None if unsure[row] else decided[self.head]
            yield Verdict(
                id=meme.id,
                text=meme.text,
                text_source=meme.text_source,
                scores={head: plain_score(values[row], self.problem) for head, values in scored.scores.items()},
                probabilities={head: plain_score(values[row], self.problem) for head, values in probabilities.items()},
                verdicts=decided,
                head=self.head,
                verdict=verdict if known is None else known["label"],
                threshold=None
                if self.problem.kind == "single_label"
                else plain_score(scored.rules[self.head].thresholds, self.problem),
                neighbours=neighbours,
                identical=known,
            )

    def _unsure(self, scored: ScoredSet, probabilities: np.ndarray) -> np.ndarray:
        """bool [Q], memes whose probability is in the band around the threshold's."""
        if not self.abstain:
            return np.zeros(len(scored), dtype=bool)
        rule: DecisionRule = scored.rules[self.head]
        limit = rule.calibration.apply(rule.thresholds[None, :], self.head, self.problem)
        return np.abs(probabilities - limit)[:, 0] < self.abstain

    def _evidence(self, scored: ScoredSet) -> Iterator[list[dict[str, Any]] | None]:
        examples = self.scorer.examples
        if examples is None:
            yield from repeat(None)
            return
        bank = examples.rows
        for neighbours, found in zip(vote_evidence(scored, bank), scored.neighbours.rows, strict=True):
            if not isinstance(bank, Bank):
                yield neighbours
                continue
            known = [bank.row(int(place)) for place in found[found >= 0]]
            yield [
                neighbour | {name: told[name] for name in ("source", "note", "time")}
                for neighbour, told in zip(neighbours, known, strict=True)
            ]
