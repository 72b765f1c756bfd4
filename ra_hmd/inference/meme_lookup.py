"""Images and captions of a bank's memes. A bank keeps ids and embeddings; the data set has the rest."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL.Image import Image

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import iter_memes
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.features.store import read_features


class MemeLookup:
    """Captions and images of memes by id. Images are decoded when they are requested.

    Args:
        memes: Memes with their images.
        captions: Id → caption of further memes, without images.
        unread: Number of rows that could not be read.
    """

    def __init__(self, memes: Iterable[Meme] = (), captions: Mapping[str, str] | None = None, unread: int = 0) -> None:
        self._memes: dict[str, Meme] = {}
        for meme in memes:
            self._memes.setdefault(meme.id, meme)
        self._captions, self.unread = dict(captions or {}), unread

    @classmethod
    def open(cls, places: Sequence[str | Path], prompt: PromptTemplate | None = None) -> "MemeLookup":
        """Read the memes of imported folders, of .jsonl files and of ShareGPT .json files; the first of equal ids
        counts.

        Args:
            places: Folders and files.
            prompt: Template of the questions of ShareGPT files, whose `{text}` holds the caption.

        Raises:
            UserError: a missing place, a folder without .jsonl files.
        """
        memes: list[Meme] = []
        unread = 0
        for place in map(Path, places):
            for path in _files(place):
                rows = [row for _, row in iter_memes(path, prompt=prompt)]
                readable = [row for row in rows if isinstance(row, Meme)]
                memes += readable
                if readable or path == place:  # else another kind of file that lies in the folder
                    unread += len(rows) - len(readable)
        return cls(memes, unread=unread)

    @classmethod
    def from_store(cls, store: str | Path) -> "MemeLookup":
        """Read the captions of a feature store, which has no images."""
        features = read_features(store)
        texts = features.texts or []
        return cls(captions=dict(zip(features.ids, texts, strict=bool(texts))))

    @property
    def digest(self) -> str:
        """Digest of ids, captions and images, for the fingerprint of outputs that show them."""
        rows = [(meme.id, meme.caption, file_digest(meme.path)) for meme in self._memes.values()]
        rows += [(name, caption, "") for name, caption in self._captions.items()]
        return sha256_bytes(*(part.encode("utf-8", "surrogatepass") for row in rows for part in row))

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        if not self.unread:
            return []
        return [f"{self.unread} rows of --memes cannot be read: such neighbours have no caption and no image."]

    def get(self, name: str) -> Meme | None:
        """The meme with an id; None if it is unknown, or known by its caption alone."""
        return self._memes.get(name)

    def caption(self, name: str) -> str | None:
        """The caption of the meme with an id; None if it is unknown."""
        meme = self._memes.get(name)
        return self._captions.get(name) if meme is None else meme.caption

    def image(self, name: str) -> Image | None:
        """The decoded image of the meme with an id; None if there is none, or it cannot be decoded."""
        meme = self._memes.get(name)
        try:
            return meme.load_image() if meme is not None and meme.path.is_file() else None
        except UserError:
            return None

    def __len__(self) -> int:
        return len(self._memes)


def open_meme_lookup(places: Sequence[str | Path], model: object) -> MemeLookup:
    """`MemeLookup.open` with the prompt of the detector's LMM; an encoder has none."""
    run = getattr(model, "run", None)
    return MemeLookup.open(places, None if run is None else run.settings.prompt)


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.jsonl"))
    if not files:
        raise UserError(f"{place} has no .jsonl file; give an imported folder (`ra-hmd data import`), or the file.")
    return files
