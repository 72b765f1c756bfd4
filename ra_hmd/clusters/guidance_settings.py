"""Settings of `ra-hmd guidance`: the teacher, the memes that it sees, and how it sees their images."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from ra_hmd.core.choices import EngineKind
from ra_hmd.core.config import Settings
from ra_hmd.inference.options import Flag
from ra_hmd.models.generation.endpoint import EndpointSettings


class TeacherSettings(EndpointSettings):
    """Teacher and its endpoint."""

    TITLE: ClassVar[str] = "teacher"

    temperature: float = Field(default=0.3, ge=0, description="Temperature of the teacher's sampling.")
    max_tokens: int = Field(default=300, ge=1, description="Length limit of an answer, in tokens.")
    retries: int = Field(default=3, ge=0, description="Retries of a request without a usable answer.")
    timeout: float = Field(default=120.0, gt=0, description="Seconds until a request counts as failed.")


class TeacherOptions(TeacherSettings):
    """The teacher as options, for a command that also works without one."""

    endpoint: str | None = Field(  # type: ignore[assignment]
        default=None,
        description="Base URL of an OpenAI-compatible API, such as http://127.0.0.1:11434/v1. MEMES ARE SENT THERE.",
    )
    model: str | None = Field(  # type: ignore[assignment]
        default=None, description="Name of the teacher at the endpoint."
    )

    def _problems(self) -> Iterator[str]:
        if (self.endpoint is None) != (self.model is None):
            yield "give both --endpoint and --model, or neither."


class MemberSettings(Settings):
    """Choice of the memes that stand for a cluster."""

    TITLE: ClassVar[str] = "members"

    nearest: int = Field(default=3, ge=0, description="Memes of each cluster that lie nearest its centroid.")
    random: int = Field(default=2, ge=0, description="Further memes of each cluster, drawn at random.")
    seed: int = Field(default=0, ge=0, description="Seed of the draw.")

    def _problems(self) -> Iterator[str]:
        if self.nearest + self.random == 0:
            yield "nearest and random are both 0; a cluster needs a meme that stands for it."


class PictureSettings(Settings):
    """How the teacher sees the images of memes."""

    TITLE: ClassVar[str] = "images"

    images: Annotated[bool, Flag("--images/--no-images")] = Field(
        default=True, description="Send the images, or descriptions of them."
    )
    image_side: int = Field(default=768, ge=64, le=4096, description="Longest side of sent images, in pixels.")
    describe_with: str | None = Field(
        default=None,
        description="With --no-images: run or model that describes images whose records have no `description`.",
    )
    describe_template: str | None = Field(
        default=None, description="LLaMA-Factory template of the --describe-with model, where it is no run."
    )
    engine: EngineKind = Field(
        default="auto", description="Engine of the --describe-with model: auto, transformers or vllm."
    )

    def _problems(self) -> Iterator[str]:
        if self.images and self.describe_with is not None:
            yield "--describe-with describes images that are not sent; give it with --no-images."
