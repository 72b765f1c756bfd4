"""Manifest of cluster guidance."""

from typing import Any, ClassVar

from pydantic import Field

from ra_hmd.core.manifests.base import Manifest, Section


class TeacherDescription(Section):
    """Origin of guidance texts.

    Attributes:
        kind: `endpoint`, or `file` for texts that were given by hand.
        model: Name of the model at the endpoint.
        host: Host and port of the endpoint.
        served: Model names that the server reported.
        file: Name of the file of texts.
        file_sha256: Digest of that file.
        describer: Model that described the images, where the teacher saw descriptions.
    """

    kind: str = "endpoint"
    model: str | None = None
    host: str | None = None
    served: list[str] = Field(default_factory=list)
    file: str | None = None
    file_sha256: str | None = None
    describer: dict[str, Any] | None = None


class GuidanceData(Section):
    """The split whose memes the teacher saw.

    Attributes:
        place: Folder of the imported data set.
        dataset: Name of the data set.
        split: Split.
    """

    place: str = ""
    dataset: str | None = None
    split: str = ""


class ClusterGuidance(Section):
    """Guidance of one cluster.

    Attributes:
        cluster: Number of the cluster.
        text: The guidance.
        members: Ids of the memes that the teacher saw.
        sha256: Digest of the text as it was written; a text that was edited later has another one.
        request_sha256: Digest of the request to the teacher.
        cut: Whether the teacher's text was longer.
    """

    cluster: int = Field(ge=0)
    text: str
    members: list[str] = Field(default_factory=list)
    sha256: str = ""
    request_sha256: str | None = None
    cut: bool = False


class GuidanceManifest(Manifest):
    """Guidance of all clusters (`guidance.json`).

    Attributes:
        command: The command line.
        clusters: Digest of the clusters that the texts were written for.
        guidance: One entry per cluster.
        shuffled: Seed of the permutation, where the texts were permuted between the clusters.
        teacher: Origin of the texts.
        settings: Settings of the teacher, and of the choice of members.
        data: The split whose memes the teacher saw.
        notes: Remarks.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("guidance",)
    REMEDY: ClassVar[str] = "give a file of `ra-hmd guidance`"

    command: str = ""
    clusters: str
    guidance: list[ClusterGuidance]
    shuffled: int | None = None
    teacher: TeacherDescription | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    data: GuidanceData | None = None
    notes: list[str] = Field(default_factory=list)
