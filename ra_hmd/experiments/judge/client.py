"""Settings of the judge's endpoint, and the format of its answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ra_hmd.experiments.judge.rubric import Grade, parse_grade, response_format
from ra_hmd.models.generation.endpoint import EndpointSettings
from ra_hmd.models.generation.openai_client import AnswerFormat, OpenAIClient


class JudgeSettings(EndpointSettings):
    """Judge model and its endpoint."""

    TITLE: ClassVar[str] = "judge"


class GradeFormat(AnswerFormat[Grade]):
    """A grade is requested by a JSON schema, as a JSON object, or in words alone."""

    noun = "grade"
    forms: Sequence[tuple[str, dict[str, Any]]] = (
        ("json_schema", {"response_format": response_format()}),
        ("json_object", {"response_format": {"type": "json_object"}}),
        ("none", {}),
    )

    def parse(self, text: str, *, cut: bool) -> Grade:
        return parse_grade(text)

    def to_json(self, value: Grade) -> dict[str, Any]:
        return {"score": value.score, "reason": value.reason}

    def from_json(self, kept: dict[str, Any]) -> Grade:
        return Grade(score=kept["score"], reason=kept["reason"])


def judge_client(settings: JudgeSettings, key: str | None, cache: Path) -> OpenAIClient[Grade]:
    """Client of a judge. See `OpenAIClient`."""
    return OpenAIClient(settings, key, cache, GradeFormat())
