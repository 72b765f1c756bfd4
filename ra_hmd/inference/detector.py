"""The detector: from memes to verdicts, for the command line, the HTTP service and the console alike.

Shapes: Q memes, B memes of a batch, C outputs of the problem (1 if binary).
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator
from PIL.Image import Image

from ra_hmd.bank.known_memes import KnownMeme, KnownMemes
from ra_hmd.bank.versions import VersionEntry
from ra_hmd.core.artifacts import sha256_file
from ra_hmd.core.choices import DType
from ra_hmd.core.config import choose
from ra_hmd.core.errors import UserError
from ra_hmd.core.heads import BANK_HEADS, Head
from ra_hmd.core.manifests import ViewDescription
from ra_hmd.core.problem import UNLABELLED
from ra_hmd.data.benign_transforms import benign_copies
from ra_hmd.data.images import content_hash
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.data.text import well_formed
from ra_hmd.features.columns import batch_columns, features_from_columns
from ra_hmd.features.compatibility import ENGINE
from ra_hmd.features.feature_model import LazyModel, open_feature_model
from ra_hmd.features.model_protocol import FeatureModel
from ra_hmd.features.views import ViewedModel
from ra_hmd.inference.bank_rows import checked_labels, labelled_rows
from ra_hmd.inference.defences import OFF, Defences, mean_over_copies
from ra_hmd.inference.known import known_verdict, open_known_memes
from ra_hmd.inference.pretrained import find_pretrained
from ra_hmd.inference.types import Explain, PreparedMeme, Verdict
from ra_hmd.inference.verdicts import verdicts_of
from ra_hmd.models.head import HEAD_WEIGHTS
from ra_hmd.models.pooling.settings import TRANSFORMERS, BackendSettings
from ra_hmd.retrieval.kernel_ridge.settings import kernel_settings
from ra_hmd.retrieval.voting import Voting
from ra_hmd.scoring.scorer import Scorer
from ra_hmd.scoring.scores import ScoredSet

_KEPT_PIXELS = 1 << 20
"""Largest image of a known meme that is kept as it is; of a larger one the model's input takes less memory."""


def _deciding_head(scorer: Scorer, head: Head | None, abstain: float) -> Head:
    """Return the head that decides. Raises `UserError` for a missing head, and a band outside [0, 0.5)."""
    head = head or ("lrc" if scorer.reference_set is None else "rkc")
    choose("head", head, get_args(Head))
    if head in BANK_HEADS and scorer.reference_set is None:
        raise UserError(f"The head `{head}` needs a bank: the labelled memes that vote.")
    if not 0 <= abstain < 0.5:
        raise UserError(f"abstain is {abstain}, it must lie in [0, 0.5).")
    kind = scorer.model.config.problem.kind
    if abstain and kind != "binary":
        raise UserError(f"abstain is for binary heads; this one decides `{kind}`.")
    return head


def _views_to_make(scorer: Scorer, requested: Sequence[str]) -> dict[str, ViewDescription]:
    """The views that are made of each meme: those that an example bank keeps, and those requested.

    Raises:
        UserError: the examples do not have a view.
    """
    examples = scorer.reference_set
    stated = {} if examples is None else examples.views
    made = {} if scorer.bank is None else dict(stated)
    for name, _, encoder in (text.partition("=") for text in requested):
        if name == "embedding" or (name == "hidden" and scorer.bank is None):
            continue
        if name not in stated:
            have = ", ".join(["embedding", *stated])
            raise UserError(f"View {name!r} is not among those of the bank {scorer.state['place']} ({have}).")
        made[name] = stated[name].at(encoder) if encoder else stated[name]
    return made


class Detector:
    """A trained system that classifies memes: LMM or encoder, head, bank and decision rules.

    The scores of a meme come from one forward pass, by the code of `ra-hmd extract` (or `encode`) and `ra-hmd
    evaluate`, and depend on no other meme.

    Args:
        model: Computes the features of memes, and further views of them (`ViewedModel`).
        scorer: Head, bank, thresholds and calibration.
        head: The head that decides; default is the RKC with a bank and the LRC without.
        abstain: Half the width, in probability, of the band around the threshold in which a meme is left to a person.
            Binary heads only.
        batch_size: Memes per forward pass.
        known: Labelled rows whose copies are answered without the model; default: none are looked for.
        defences: Defences against disguised memes; folding is the model's own, which `from_run` opens accordingly.

    Attributes:
        engine: Engine of the forward pass and its version, where it is not transformers.

    Raises:
        UserError: a missing head, an abstention band outside [0, 0.5) or for several classes.
    """

    def __init__(
        self,
        model: FeatureModel,
        scorer: Scorer,
        head: Head | None = None,
        abstain: float = 0.0,
        batch_size: int = 16,
        known: KnownMemes | None = None,
        defences: Defences = OFF,
    ) -> None:
        self.feature_model, self.scorer, self.batch_size = model, scorer, batch_size
        self.model = model.main if isinstance(model, ViewedModel) else model
        self.known, self.defences = known, defences
        self.engine: str | None = None
        self.problem = scorer.model.config.problem
        self.head, self.abstain = _deciding_head(scorer, head, abstain), abstain
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
        views: Sequence[str] = (),
        device: str | torch.device | None = None,
        defences: Defences = OFF,
        known_memes: int | None = None,
        known_turned: bool = False,
        hash_lists: Sequence[str | Path] = (),
        lazy: bool = False,
        backend: BackendSettings = TRANSFORMERS,
    ) -> "Detector":
        """Open a trained system.

        Args:
            run: Folder with a head: a Stage 1 run, a Stage 2 output, or a head on an encoder's features.
            bank: Labelled memes that vote: a feature store or an example bank. Without a bank there is no RKC.
            backbone: Stage 1 run or encoder that the head was trained on, if it is not where the run says.
            base_model: Where the base model of an LMM is now.
            head: See `Detector`.
            voting: Settings of the vote; default are the official ones.
            thresholds: `stored` beside the head, if there are any, or `official`.
            abstain: See `Detector`.
            batch_size: Memes per forward pass.
            dtype: Precision of the LMM or encoder; default is that of the weights for an LMM, and that of the
                features that the head was trained on for an encoder.
            views: Views of the bank that the KRR compares; default: the embedding. `NAME`, or `NAME=ENCODER` where its
                encoder is not where the bank says. Those that an example bank keeps are made of each meme in any case.
            device: Where everything runs; default is what accelerate finds.
            defences: Defences against disguised memes. Of a head that was trained on folded captions they are folded in
                any case; verdicts state them as they were given.
            known_memes: Look for known memes first, up to this distance (see `open_known_memes`); default is not to.
            known_turned: See `open_known_memes`.
            hash_lists: See `open_known_memes`.
            lazy: Load the LMM or encoder when it is first used.
            backend: What runs an LMM's forward pass.

        Raises:
            UserError: folders that are missing, or do not belong together.
        """
        device = torch.device(device) if device is not None else Accelerator().device
        scorer = Scorer.open(run, bank, voting, thresholds=thresholds, device=device)
        opened = open_feature_model(
            run,
            backbone=backbone,
            base_model=base_model,
            dtype=dtype,
            views=_views_to_make(scorer, views),
            views_place=scorer.state["place"],
            fold_captions=defences.fold_captions,
            backend=backend,
        )
        scorer.check_origin(opened.place, opened.fingerprint)
        scorer = scorer.with_kernel(kernel_settings(views, balanced=scorer.voting.prior_correction))
        head = _deciding_head(scorer, head, abstain)  # before a large model is loaded
        known = None
        if known_memes is not None:
            known = open_known_memes(scorer, known_memes, turned=known_turned, hash_lists=hash_lists)
        model: Any = LazyModel(opened, device) if lazy else opened.load(device)
        made = cls(model, scorer, head, abstain, batch_size, known, defences)
        made.engine = opened.fingerprint.get(ENGINE)
        return made

    @classmethod
    def from_pretrained(
        cls,
        place: str | Path,
        bank: str | Path | None = None,
        *,
        revision: str | None = None,
        base_model: str | None = None,
        **options: Any,
    ) -> "Detector":
        """Open a system that was published by `ra-hmd push`, from the Hugging Face hub or a folder.

        Weights are read from safetensors alone, and all files are compared with the digests that were published.

        Args:
            place: Name of a repository, such as `org/name`, or a folder; also the folder of a run.
            bank: Labelled memes that vote; default: the bank that was published with it, if any.
            revision: Branch, tag or commit of the repository.
            base_model: The model underneath, if it is neither published with the system nor where its card says.
            options: Further arguments of `from_run`.

        Raises:
            UserError: nothing there, files that are not those that were published; and see `from_run`.
        """
        found = find_pretrained(place, revision, base_model)
        parts = {"backbone": found.backbone, "base_model": found.base_model} | options
        return cls.from_run(found.run, found.bank if bank is None else bank, **parts)

    @property
    def version(self) -> dict[str, Any]:
        """Identity of what verdicts depend on: `run`, `head_sha256`, and `bank` with `place`, `sha256` and, for an
        example bank, `version`.
        """
        return {"run": str(self.scorer.checkpoint), "head_sha256": self._head_sha256, "bank": self.scorer.state}

    def refresh(self) -> None:
        """Switch to the newest version of the example bank, which another process may have changed."""
        self.scorer = self.scorer.refreshed()

    def add_to_bank(
        self, memes: Sequence[Meme], *, author: str, reason: str, source: str = "", relabel_identical: bool = False
    ) -> VersionEntry:
        """Add labelled memes to the example bank, as a new version. The next verdicts use them; nothing is trained.

        Args:
            memes: The memes, each with its `label`.
            author: Author of the change, for the log.
            reason: Reason for the change, for the log.
            source: Where the memes come from; kept with each row.
            relabel_identical: Whether rows that are the same memes with other labels get the new ones.

        Raises:
            UserError: no example bank, and see `Bank.add`; a meme without a label, or see `prepare`.
        """
        if self.scorer.bank is None:
            raise UserError("Only an example bank can be changed; make one with `ra_hmd.create_bank`.")
        labels = checked_labels(memes, self.problem)
        prepared = [self.prepare(meme) for meme in memes]
        rows, new = labelled_rows(memes, prepared, labels, source), self.score(prepared).queries
        entry = self.scorer.bank.add(
            rows, new.embedding, author=author, reason=reason, relabel_identical=relabel_identical, views=new.views
        )
        self.refresh()
        return entry

    def __call__(self, memes: Sequence[Meme], explain: Explain | None = None) -> list[Verdict]:
        """Classify memes, in their order.

        Args:
            memes: The memes; a caption that is None is read from the image.
            explain: Explains the verdicts, such as an `Explainer`; no score depends on it.

        Raises:
            UserError: an image that cannot be decoded or used, or a caption that does not fit (the message names the
                meme); no LMM for explanations.
        """
        prepared = [self.prepare(meme) for meme in memes]
        verdicts = self.judge(prepared)
        if explain is None:
            return verdicts
        explanations = explain(verdicts, [self.image_of(meme) for meme in prepared])
        return [replace(verdict, **one.fields()) for verdict, one in zip(verdicts, explanations, strict=True)]

    def prepare(self, meme: Meme) -> PreparedMeme:
        """Decode, resize and tokenise a meme, on the CPU.

        Raises:
            UserError: see `__call__`.
        """
        try:
            image = meme.load_image()
            text, source = (well_formed(meme.text), "given") if meme.text is not None else self._read(image)
            content, hashes = content_hash(image, text), None
            if self.known is not None:
                hashes = self.known.hashes(image, text, content)
                found = self.known.find(hashes)
                keep = found is not None and found.decides and image.width * image.height <= _KEPT_PIXELS
                if keep:
                    return PreparedMeme(meme.id, text, source, None, content, hashes, image)
            return self._with_items(PreparedMeme(meme.id, text, source, None, content, hashes), image)
        except ValueError as error:  # a UserError, or an error of the model's own code about the image
            raise UserError(f"meme {meme.id!r}: {error}") from error

    @property
    def prompt(self) -> PromptTemplate:
        """The prompt of the LMM; for an encoder, which has none, the official one."""
        run = getattr(self.model, "run", None)
        return PromptTemplate() if run is None else run.settings.prompt

    def judge(self, memes: Sequence[PreparedMeme]) -> list[Verdict]:
        """Classify prepared memes, in their order; memes of similar length share a forward pass."""
        return self.judge_and_score(memes)[0]

    def judge_and_score(self, memes: Sequence[PreparedMeme]) -> tuple[list[Verdict], ScoredSet | None]:
        """Verdicts on memes, and the scores of those that the model has seen, which are those that are not known
        (`known`); None if there are none.
        """
        found = [self._find_known(meme) for meme in memes]
        unknown = [meme for meme, known in zip(memes, found, strict=True) if known is None or not known.decides]
        scored = self.score(unknown) if unknown else None
        made = iter([] if scored is None else self.verdicts(unknown, scored))
        verdicts = []
        for meme, known in zip(memes, found, strict=True):
            if known is not None and known.decides:
                (identical,) = self.scorer.decided_rows_of([meme.content])
                verdicts.append(known_verdict(meme, known, self.head, identical))
            else:
                verdicts.append(replace(next(made), known=None if known is None else known.to_dict()))
        return verdicts, scored

    def image_of(self, meme: PreparedMeme) -> Image:
        """The resized image of a prepared meme of an LMM."""
        return self._encoded(meme).image

    def _find_known(self, meme: PreparedMeme) -> KnownMeme | None:
        return None if self.known is None or meme.hashes is None else self.known.find(meme.hashes)

    def _encoded(self, meme: PreparedMeme) -> PreparedMeme:
        """The meme with its item, which that of a known one lacks; the bank may have changed since it was prepared."""
        if meme.picture is None:
            return meme
        try:
            return self._with_items(meme, meme.picture)
        except ValueError as error:
            raise UserError(f"meme {meme.id!r}: {error}") from error

    def _with_items(self, meme: PreparedMeme, image: Image) -> PreparedMeme:
        """The meme with the model's inputs for its picture and changed copies of that, and its caption checked."""
        items = [self.feature_model.encode(meme.text, one)
                 for one in (image, *benign_copies(image, self.defences.transforms))]  # fmt: skip
        check = None
        if self.defences.check_captions is not None and meme.text_source == "given":
            check = self.defences.check(meme.text, self._read(image)[0])
        return replace(meme, item=items[0], copies=tuple(items[1:]), caption_check=check, picture=None)

    def score(self, memes: Sequence[PreparedMeme]) -> ScoredSet:
        """Scores and embeddings of one or more prepared memes, in their order."""
        memes = [self._encoded(meme) for meme in memes]
        copies = [[meme.copies[number] for meme in memes] for number in range(self.defences.transforms)]
        scored = self._score_items(memes, [meme.item for meme in memes])
        return mean_over_copies(scored, [self._score_items(memes, one) for one in copies]) if copies else scored

    def _score_items(self, memes: Sequence[PreparedMeme], items: Sequence[Any]) -> ScoredSet:
        """Scores of memes by the model's inputs for them."""
        order = sorted(range(len(items)), key=lambda row: self.feature_model.length(items[row]))
        parts = []
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.feature_model.collate([items[row] for row in rows])
            parts.append(batch_columns(self.feature_model, batch))
        columns: dict[str, Any] = {
            name: np.concatenate([part[name] for part in parts])[np.argsort(order)] for name in parts[0]
        }
        columns["contents"] = [meme.content for meme in memes]
        shape = (len(memes), self.problem.outputs) if self.problem.kind == "multi_label" else len(memes)
        labels = np.full(shape, UNLABELLED, dtype=np.int64)
        features = features_from_columns([meme.id for meme in memes], [meme.text for meme in memes], labels, columns)
        return self.scorer("the memes", features)

    def verdicts(self, memes: Sequence[PreparedMeme], scored: ScoredSet) -> list[Verdict]:
        """Verdicts on memes that `score` has scored, by the bank as it was then."""
        if self.head not in scored.scores:
            raise UserError(f"The head `{self.head}` has no answer: {' '.join(scored.notes)}")
        captions = [(meme.text, meme.text_source) for meme in memes]
        made = verdicts_of(scored, self.scorer, self.head, captions, abstain=self.abstain, provenance=True)
        return [self.defences.apply(verdict, meme.caption_check) for verdict, meme in zip(made, memes, strict=True)]

    def _read(self, image: Image) -> tuple[str, str]:
        """Caption read from an image, and the name of the OCR engine."""
        from ra_hmd.data.ocr import open_ocr_engine, read_text

        with self._reading:  # a service calls `prepare` in several threads; the engine runs in one at a time
            if self._reader is None:
                self._reader = open_ocr_engine()
            engine, source = self._reader
            return read_text(engine, image)["text"], source
