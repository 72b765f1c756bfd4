"""Clusters and guidance of a run: opened and checked, the cluster of each record, copies in the run's folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Value

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.guidance import GUIDANCE_FILE, Guidance
from ra_hmd.data.meme import Meme
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.features.test_lock import says_test
from ra_hmd.models.checkpoint import CLUSTERS_FOLDER, open_clusters_and_guidance
from ra_hmd.models.cluster_assignment import UNKNOWN_CLUSTER, ClusterAssigner, Clusters

if TYPE_CHECKING:
    from llamafactory.hparams import TrainingArguments

    from llamafactory_ext.arguments import ClassifierFinetuningArguments

CLUSTER, PROBLEM = "_cluster_id", "_cluster_problem"
"""Columns of aligned records: the cluster, and why none could be found."""

_BATCH = 32


@dataclass
class Guides:
    """Clusters and guidance of a run; neither is there in a run without.

    Attributes:
        clusters: The clusters that memes are assigned to.
        guidance: The text that a cluster's prompts have.
    """

    clusters: Clusters | None = None
    guidance: Guidance | None = None
    _assigner: ClusterAssigner | None = field(default=None, repr=False)

    @classmethod
    def open(cls, args: "ClassifierFinetuningArguments") -> "Guides":
        """Open what the arguments name; no encoder is loaded.

        Raises:
            UserError: a file is missing or damaged, the guidance was written for other clusters, or a test split was
                read to make them.
        """
        if args.clusters is None:
            return cls()
        clusters, guidance = open_clusters_and_guidance(args.clusters, args.guidance)
        splits = [(f"`clusters: {args.clusters}`", "fitted on", clusters.manifest.split_name)]
        if guidance is not None and guidance.manifest is not None and guidance.manifest.data is not None:
            splits.append((f"`guidance: {args.guidance}`", "written from", guidance.manifest.data.split))
        raise_all(
            [f"{name}: {made} split {split!r}" for name, made, split in splits if split and says_test(split)],
            "Nothing is learnt from a test split; make clusters and guidance from the training split",
        )
        return cls(clusters, guidance)

    @property
    def digests(self) -> dict[str, str | None]:
        """Digests for `InputSettings`."""
        return {
            "clusters": None if self.clusters is None else self.clusters.digest,
            "guidance": None if self.guidance is None else self.guidance.digest,
        }

    @property
    def texts(self) -> Guidance | None:
        """The guidance without its origin: a part of the key under which `datasets` keeps tokenised rows."""
        return None if self.guidance is None else Guidance(self.guidance.texts, self.guidance.clusters)

    def with_clusters(self, aligned: Dataset, prompt: PromptTemplate, training_args: "TrainingArguments") -> Dataset:
        """Aligned records with the cluster of each in a column; without clusters they stay as they are.

        Each process finds the clusters of all records, one process after the other as the host orders them. A record
        that has no cluster because its image or question is bad is told with the other bad records.
        """
        if self.clusters is None:
            return aligned
        memes = [_meme(example, prompt) for example in aligned.select_columns(["_prompt", "_images", "_sample_id"])]
        if self._assigner is None:
            with _whole_weights():
                self._assigner = self.clusters.load(training_args.device)
        known = [meme for meme in memes if meme is not None]
        found = iter(_assign(self._assigner, known, show=training_args.local_process_index == 0))
        rows = [(UNKNOWN_CLUSTER, "") if meme is None else next(found) for meme in memes]
        ids, problems = [row[0] for row in rows], [row[1] for row in rows]
        aligned = aligned.add_column(CLUSTER, ids, feature=Value("int64"))
        return aligned.add_column(PROBLEM, problems, feature=Value("string"))

    def release(self) -> None:
        """Drop the encoder: the LMM is loaded next."""
        from llamafactory.extras.misc import torch_gc

        if self._assigner is not None:
            self._assigner = None
            torch_gc()

    def copy_to(self, folder: Path) -> None:
        """Write clusters and guidance into the folder of a run or a checkpoint."""
        if self.clusters is not None:
            self.clusters.copy_to(folder / CLUSTERS_FOLDER)
        if self.guidance is not None:
            self.guidance.copy_to(folder / GUIDANCE_FILE)


def _meme(example: dict[str, Any], prompt: PromptTemplate) -> Meme | None:
    """The meme of an aligned record; None where tokenising will tell what is wrong with it."""
    images, messages = example["_images"] or [], example["_prompt"] or []
    if len(images) != 1 or len(messages) != 1 or not Path(images[0]).is_file():
        return None
    try:
        return Meme(example["_sample_id"], images[0], prompt.caption_of(messages[0]["content"]))
    except ValueError:
        return None


def _assign(assigner: ClusterAssigner, memes: Sequence[Meme], *, show: bool) -> list[tuple[int, str]]:
    """The cluster of each meme, and "" or why there is none."""
    try:
        return [(cluster, "") for cluster in assigner.prepare(memes, _BATCH, show=show)]
    except UserError:
        found: list[tuple[int, str]] = []
        for start in range(0, len(memes), _BATCH):
            part = memes[start : start + _BATCH]
            try:
                found += [(cluster, "") for cluster in assigner.prepare(part, _BATCH)]
            except UserError:
                found += [_assign_one(assigner, meme) for meme in part]
        return found


def _assign_one(assigner: ClusterAssigner, meme: Meme) -> tuple[int, str]:
    try:
        return assigner.prepare([meme])[0], ""
    except UserError as error:
        return UNKNOWN_CLUSTER, str(error)


@contextmanager
def _whole_weights() -> Iterator[None]:
    """Load a model whole under ZeRO-3, which would partition it: each process uses its encoder by itself."""
    from transformers.integrations import deepspeed

    before = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = before
