"""Manifests of attacked data sets."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest, Section


class VariantDescription(Section):
    """One attacked data set: an attack at one severity through one channel.

    Attributes:
        name: `<attack>-<severity>-<channel>`, without the channel where the attack has one only. The folder has this
            name, and each id is `<id of the clean meme>@<name>`.
        attack: Name of the attack.
        family: characters, words, caption, picture, reposting, or another kind.
        severity: 1 to 3.
        channel: What is attacked: `field`, `picture`, `both`, or `reread`.
        parameters: Parameters of the attack at this severity.
        classes: Classes that it is applied to; None: all. Memes of other classes are unchanged.
        folder: Folder of the data set, relative to `attack.json`.
        rows: Split to number of memes.
        changed: Split to number of memes whose picture or caption differs from the clean one.
        unchanged: Reason to number of memes that are as they were.
        measured: Of white-box attacks: split to what the pictures, read again from their files, do to the heads.
    """

    name: str
    attack: str
    family: str
    severity: int = Field(ge=1, le=3)
    channel: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    classes: list[int] | None = None
    folder: str = ""
    rows: dict[str, int] = Field(default_factory=dict)
    changed: dict[str, int] = Field(default_factory=dict)
    unchanged: dict[str, int] = Field(default_factory=dict)
    measured: dict[str, Any] = Field(default_factory=dict)


class CleanSplit(Section):
    """A split of the clean data set.

    Attributes:
        rows: Number of memes.
        sha256: Digest of its `.jsonl` file.
    """

    rows: int
    sha256: str


class CleanData(Section):
    """The data set that was attacked.

    Attributes:
        folder: Its folder.
        dataset: Name of the reader that imported it.
        fingerprint: Fingerprint of its import.
        splits: The splits that were attacked.
    """

    folder: str
    dataset: str | None = None
    fingerprint: str | None = None
    splits: dict[str, CleanSplit] = Field(default_factory=dict)


class AttackManifest(Manifest):
    """A folder of attacked data sets (`attack.json`).

    Attributes:
        command: The command line that was last used.
        clean: The data set that was attacked.
        suite: Name of the suite that was last asked for.
        seed: Seed of all random choices.
        variants: The data sets that are complete.
        teacher: The model that rephrased captions.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("attack",)
    REMEDY: ClassVar[str] = "give a folder of `ra-hmd attack`"

    command: str = ""
    clean: CleanData
    suite: str = ""
    seed: int = 0
    variants: list[VariantDescription] = Field(default_factory=list)
    teacher: dict[str, Any] | None = None
    notes: list[str] = Field(default_factory=list)
