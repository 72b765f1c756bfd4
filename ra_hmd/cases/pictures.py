"""Pictures of cases that programs sent: files named by the digest of their bytes."""

import hashlib
from pathlib import Path

from ra_hmd.core.artifacts import atomic_path


class CasePictures:
    """A folder of pictures.

    Args:
        folder: The folder, which is made with the first picture; private to this user.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def keep(self, content: bytes) -> tuple[str, str]:
        """Keep the bytes of a picture, and return the path of its file and its digest. Equal pictures are one file."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / digest[:2] / digest
        if not path.is_file():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_path(path, 0o600) as temporary:
                temporary.write_bytes(content)
        return str(path), digest

    def remove(self, digest: str) -> None:
        """Remove a picture, if it is here."""
        (self.folder / digest[:2] / digest).unlink(missing_ok=True)
