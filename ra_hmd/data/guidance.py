"""Guidance: one text per cluster of memes, which the prompt holds between image and question."""

import random
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ClusterGuidance, GuidanceManifest, read_manifest, write_manifest
from ra_hmd.data.prompt import clean_caption
from ra_hmd.data.text import normalise

GUIDANCE_FILE = "guidance.json"
"""Name of the guidance in the folder of a run."""
MOST_WORDS = 120
"""Most words of a guidance text."""

_WIDE = "\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_WIDE}]|[^\s…{_WIDE}]{{1,20}}")
_SENTENCE_END = re.compile(r"(?:(?<=[^\s\d])[.!?]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*)")
_FEWEST_WORDS = MOST_WORDS // 3
"""A cut between sentences keeps at least so many words, else the cut is between words."""


def clean_guidance(text: str) -> str:
    """Return a guidance text that is safe inside a prompt: cleaned as captions are, on one line, cut at `MOST_WORDS`.

    The cut is made between sentences where that keeps a third of the words, else between words. Twenty letters without
    a blank count as a word, and so does each Chinese, Japanese or Korean character. The function is idempotent.
    """
    text = clean_caption(normalise(clean_caption(text)))
    words = _word_ends(text)
    if len(words) <= MOST_WORDS:
        return text
    return without_unfinished_sentence(text[: words[MOST_WORDS - 1]])


def count_words(text: str) -> int:
    """Number of words of a text, as `clean_guidance` counts them."""
    return len(_word_ends(text))


def without_unfinished_sentence(text: str) -> str:
    """Cut a text after its last whole sentence, or mark its end by `…` where too little would be left."""
    words, ends = _word_ends(text), [match.end() for match in _SENTENCE_END.finditer(f"{text} ")]
    kept = ends and len([word for word in words if word <= ends[-1]]) >= min(_FEWEST_WORDS, len(words) / 2)
    return text[: ends[-1]] if kept else f"{text}…"


def _word_ends(text: str) -> list[int]:
    return [match.end() for match in _WORD.finditer(text)]


@dataclass(frozen=True)
class Guidance:
    """Guidance texts of clusters.

    Attributes:
        texts: The text of each cluster, as `clean_guidance` returns it; "" for none.
        clusters: Digest of the clusters that the texts were written for.
        manifest: Origin of the texts, where it is known.
    """

    texts: tuple[str, ...]
    clusters: str
    manifest: GuidanceManifest | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(clean_guidance(text) for text in self.texts))

    @classmethod
    def open(cls, path: str | Path) -> "Guidance":
        """Read guidance from its file, or from `guidance.json` in a folder. Texts may have been edited since.

        Raises:
            UserError: no such file, another kind of file, or not one text for each cluster.
        """
        path = Path(path)
        path = path / GUIDANCE_FILE if path.is_dir() else path
        manifest = read_manifest(path, GuidanceManifest)
        numbers = [entry.cluster for entry in manifest.guidance]
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        missing = sorted(set(range(len(set(numbers)))) - set(numbers))
        problems = [f"cluster {number} has several texts" for number in twice]
        problems += [f"cluster {number} has no entry" for number in missing]
        problems += ["it holds no text"] if not numbers else []
        raise_all(problems, f"{path} must have one entry for each cluster, numbered from 0")
        texts = {entry.cluster: entry.text for entry in manifest.guidance}
        return cls(tuple(texts[number] for number in range(len(texts))), manifest.clusters, manifest)

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.texts)

    @property
    def digest(self) -> str:
        """Digest of the texts in the order of the clusters."""
        return sha256_bytes(*(text.encode() for text in self.texts))

    def text_of(self, cluster: int) -> str:
        """Return the text of a cluster; "" for -1, a meme of no known cluster.

        Raises:
            ValueError: there is no such cluster.
        """
        if not -1 <= cluster < self.count:
            raise ValueError(f"there is no cluster {cluster}; the guidance has clusters 0 to {self.count - 1}, or -1.")
        return "" if cluster == -1 else self.texts[cluster]

    def edited(self, cluster: int) -> bool:
        """Whether the text of a cluster is another one than the file was written with."""
        entries = self.manifest.guidance if self.manifest else []
        stated = [entry.sha256 for entry in entries if entry.cluster == cluster and entry.sha256]
        return bool(stated) and sha256_bytes(self.texts[cluster].encode()) != stated[0]

    def shuffled(self, seed: int) -> "Guidance":
        """Return the texts permuted so that no cluster keeps its own: a control.

        Raises:
            UserError: there is one cluster only.
        """
        if self.count < 2:
            raise UserError(f"Guidance of {self.count} cluster cannot be shuffled; two clusters or more are needed.")
        order, generator = list(range(self.count)), random.Random(seed)
        for last in range(self.count - 1, 0, -1):  # Sattolo: one cycle, hence no fixed point
            other = int(generator.random() * last)
            order[last], order[other] = order[other], order[last]
        manifest = self._described()
        entries = [
            manifest.guidance[source].model_copy(update={"cluster": cluster}) for cluster, source in enumerate(order)
        ]
        changes = {"guidance": entries, "shuffled": seed}
        return replace(
            self, texts=tuple(self.texts[source] for source in order), manifest=manifest.model_copy(update=changes)
        )

    def check(self, clusters_digest: str, count: int) -> None:
        """Raise `UserError` where the texts were written for other clusters than those with this digest and number."""
        if self.count != count:
            raise UserError(
                f"The guidance has texts for {self.count} clusters, and there are {count}; make guidance for these "
                "clusters with `ra-hmd guidance`."
            )
        if self.clusters != clusters_digest:
            raise UserError(
                f"The guidance was written for other clusters (digest {self.clusters[:12]}, these have "
                f"{clusters_digest[:12]}); make guidance for these clusters with `ra-hmd guidance`."
            )

    def copy_to(self, path: str | Path) -> None:
        """Write the guidance to a file, or as `guidance.json` into an existing folder, atomically."""
        path = Path(path)
        write_manifest(path / GUIDANCE_FILE if path.is_dir() else path, self._described())

    def _described(self) -> GuidanceManifest:
        """The manifest with the texts and clusters of this object."""
        known = {entry.cluster: entry for entry in self.manifest.guidance} if self.manifest else {}
        entries = [
            known[cluster].model_copy(update={"text": text})
            if cluster in known
            else ClusterGuidance(cluster=cluster, text=text, sha256=sha256_bytes(text.encode()))
            for cluster, text in enumerate(self.texts)
        ]
        if self.manifest is None:
            return GuidanceManifest.new(clusters=self.clusters, guidance=entries)
        return self.manifest.model_copy(update={"clusters": self.clusters, "guidance": entries})
