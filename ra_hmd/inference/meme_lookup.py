"""Where the pictures and captions of a bank's memes are: a bank keeps ids and embeddings, the data set the rest."""

from collections.abc import Sequence
from pathlib import Path

from ra_hmd.core.artifacts import sha256_bytes
from ra_hmd.core.errors import UserError
from ra_hmd.data.images import file_digest
from ra_hmd.data.meme import Meme
from ra_hmd.data.meme_files import iter_memes
from ra_hmd.data.prompt import PromptTemplate
from ra_hmd.models.checkpoint import MemeModel


class Gallery:
    """Memes by their ids. Pictures are not opened.

    Args:
        memes: By id.
        unread: How many rows could not be read.
    """

    def __init__(self, memes: dict[str, Meme] | None = None, unread: int = 0) -> None:
        self._memes, self.unread = memes or {}, unread

    @classmethod
    def open(cls, places: Sequence[str | Path], prompt: PromptTemplate | None = None) -> "Gallery":
        """The memes of imported folders, of .jsonl files and of ShareGPT .json files; of equal ids the first counts.

        Args:
            places: Folders and files.
            prompt: Of ShareGPT files: the template whose `{text}` holds the caption.

        Raises:
            UserError: a place that is not there, a folder without .jsonl files.
        """
        memes: dict[str, Meme] = {}
        unread = 0
        for place in map(Path, places):
            for path in _files(place):
                rows = [found for _, found in iter_memes(path, prompt=prompt)]
                good = [found for found in rows if isinstance(found, Meme)]
                for meme in good:
                    memes.setdefault(meme.id, meme)
                if good or path == place:  # else it is a file of something else that lies in the folder
                    unread += len(rows) - len(good)
        return cls(memes, unread)

    @property
    def digest(self) -> str:
        """Of captions and pictures, for what is kept of answers that show them."""
        return sha256_bytes(*(part.encode("utf-8", "surrogatepass") for meme in self._memes.values()
                              for part in (meme.id, meme.text, file_digest(meme.image))))  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """What a user must know of it."""
        if not self.unread:
            return []
        return [f"{self.unread} rows of --memes cannot be read: such neighbours have no caption and no picture."]

    def get(self, name: str) -> Meme | None:
        """The meme of that id, if it is known."""
        return self._memes.get(name)

    def __len__(self) -> int:
        return len(self._memes)


def open_gallery(places: Sequence[str | Path], model: object) -> Gallery:
    """`Gallery.open`, with the prompt of the LMM that judges; an encoder has none."""
    return Gallery.open(places, model.run.settings.prompt if isinstance(model, MemeModel) else None)


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.jsonl"))
    if not files:
        raise UserError(f"{place} has no .jsonl file; give an imported folder (`ra-hmd data import`), or the file.")
    return files
