"""`/v1/moderations` asked by the openai client, `/v1/info`, and the categories of every kind of head."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from servers import drawn, encoded, in_thread, queries

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import Problem
from ra_hmd.data.meme import Meme
from ra_hmd.inference.detector import Detector
from ra_hmd.inference.types import Verdict
from ra_hmd.serve.app import create_app
from ra_hmd.serve.batching import BatchingService, ServedVerdict
from ra_hmd.serve.classes import ServedClasses
from ra_hmd.serve.limits import RequestLimits
from ra_hmd.serve.moderation import to_moderation


@pytest.fixture(scope="module")
def client(served_clip: Path) -> Iterator[httpx.Client]:
    service = BatchingService(Detector.from_run(served_clip / "head", served_clip / "bank"))
    with in_thread(create_app(service, limits=RequestLimits(max_text=100))) as client:
        yield client


@pytest.fixture(scope="module")
def asking(client: httpx.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


def picture(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{encoded(data)}"}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def test_the_openai_client_reads_the_detectors_verdict(asking: openai.OpenAI, served_clip: Path, memes: Path) -> None:
    detector = Detector.from_run(served_clip / "head", served_clip / "bank")
    seen = set()
    for meme in queries(memes)[:6]:
        assert isinstance(meme.image, Path)
        (expected,) = detector([replace(meme, id="another")])
        sent: Any = [words(meme.text or ""), picture(meme.image.read_bytes())]
        answer = asking.moderations.create(input=sent, model="omni-moderation-latest")
        (result,) = answer.results
        assert (answer.model, answer.id[:5]) == ("ra-hmd:head", "modr-")
        assert result.flagged is result.categories.hate is (expected.verdict == 1)
        assert result.category_scores.hate == pytest.approx(expected.probabilities["rkc"], abs=1e-4)
        assert result.category_applied_input_types.hate == ["image", "text"]
        assert result.categories.violence is None, "what is not judged is not stated"
        seen.add(result.flagged)
    assert seen == {True, False}


def test_two_texts_are_one_caption(client: httpx.Client) -> None:
    def score(*parts: dict[str, Any]) -> float:
        answer = client.post("/v1/moderations", json={"input": parts})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["results"][0]["category_scores"]["hate"])

    assert score(words("a cake"), picture(drawn()), words("on a plate")) == pytest.approx(
        score(picture(drawn()), words("a cake on a plate")), abs=1e-6
    )
    assert client.post("/v1/moderations", json={"input": [picture(drawn()), words("")]}).json()["results"][0][
        "category_applied_input_types"
    ] == {"hate": ["image"]}


@pytest.mark.parametrize(
    ("sent", "code", "pointer"),
    [
        ("a cake", "picture_required", "/input"),
        (["a cake", "a plate"], "picture_required", "/input"),
        ([words("a cake")], "picture_required", "/input"),
        ([picture(drawn()), picture(drawn())], "one_picture", "/input/1"),
        ([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/a.png"}}], "invalid_request",
         "/input/0/image_url/url"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "invalid_request",
         "/input/0/image_url/url"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png,x"}}], "invalid_request",
         "/input/0/image_url/url"),
        ([{"type": "video"}], "invalid_request", "/input/0"),
        ([], "invalid_request", "/input"),
        (3, "invalid_request", "/input"),
        ([words("x" * 101), picture(drawn())], "unusable_meme", None),
        ([words("x"), picture(b"no picture")], "unusable_meme", None),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_with_its_code_and_place(
    asking: openai.OpenAI, sent: Any, code: str, pointer: str | None
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        asking.moderations.create(input=sent)
    assert caught.value.code == code
    assert isinstance(caught.value.body, dict)
    assert [one["pointer"] for one in caught.value.body["problems"]] == ([] if pointer is None else [pointer])


def test_info_states_what_serves(client: httpx.Client, served_clip: Path) -> None:
    info = client.get("/v1/info").json()
    assert (info["name"], info["run"], info["head"], info["heads"]) == ("ra-hmd", "head", "rkc", ["lrc", "rkc", "krr"])
    assert info["task"] == {"kind": "binary", "classes": ["not hateful", "hateful"], "flagged": ["hateful"]}
    assert (info["bank"]["version"], info["bank"]["changeable"]) == (1, False)
    assert info["limits"]["max_text"] == 100
    assert str(served_clip) not in client.get("/v1/info").text
    for name in info["formats"]:
        style = {"JPEG 2000": "JPEG2000"}.get(name, name)
        meme = {"image": encoded(drawn(style=style)), "text": "a cake"}
        assert client.post("/v1/classify", json={"memes": [meme]}).status_code == 200, name


# ---------------------------------------------------------------------------------------------------- other heads


def moderated(
    problem: Problem, verdict: Any, probability: Any, names: tuple[str, ...] = (), flagged: tuple[int, ...] = (1,)
) -> Any:
    """A verdict of a problem in the endpoint's shape, without a model."""
    made = Verdict(id="a", text="a cake", text_source="given", scores={"lrc": 0.0}, verdicts={"lrc": verdict},
                   probabilities={} if probability is None else {"lrc": probability}, head="lrc", verdict=verdict,
                   threshold=None, neighbours=None)  # fmt: skip
    classes = ServedClasses(problem, names or ("no", "yes"), flagged, bool(names))
    version = {"run": "r", "head_sha256": "", "bank": {}}
    result = to_moderation(ServedVerdict(Meme("a", b""), made, version), classes)
    return result.flagged, result.categories, result.category_scores, result.needs_review


def test_categories_of_two_classes() -> None:
    assert moderated(Problem(), 1, 0.75) == (True, {"hate": True}, {"hate": 0.75}, False)
    assert moderated(Problem(), 0, 0.25, ("fine", "cruel")) == (
        False, {"hate": False, "fine": True, "cruel": False}, {"hate": 0.25, "fine": 0.75, "cruel": 0.25}, False,
    )  # fmt: skip
    assert moderated(Problem(), None, 0.5) == (True, {"hate": False}, {"hate": 0.5}, True), "a person has to look"
    assert moderated(Problem(), 1, None) == (True, {"hate": True}, {"hate": 1.0}, False), "a known meme has no scores"


def test_categories_of_several_classes() -> None:
    names = ("none", "mild", "severe")
    one = Problem("single_label", 3)
    assert moderated(one, 1, [0.25, 0.5, 0.25], names, (1, 2)) == (
        True, {"hate": True, "none": False, "mild": True, "severe": False},
        {"hate": 0.75, "none": 0.25, "mild": 0.5, "severe": 0.25}, False,
    )  # fmt: skip
    assert moderated(one, 1, [0.25, 0.5, 0.25], names, (2,))[0] is False, "only what the operator flags"
    several = Problem("multi_label", 2)
    assert moderated(several, [0, 1], [0.25, 0.75], ("mocking", "hate"), (0,)) == (
        False, {"hate": True, "mocking": False}, {"hate": 0.75, "mocking": 0.25}, False,
    ), "a class of that name stands for itself"  # fmt: skip
    assert moderated(several, [0, 0], [0.25, 0.25], ("a", "b"), (0, 1))[:2] == (
        False, {"hate": False, "a": False, "b": False},
    )  # fmt: skip


def test_names_and_flags_that_do_not_fit(served_clip: Path) -> None:
    detector = Detector.from_run(served_clip / "head")
    assert ServedClasses.of(detector, ["fine", "cruel"]).names == ("fine", "cruel")
    with pytest.raises(UserError, match="2 different names"):
        ServedClasses.of(detector, ["fine"])
    with pytest.raises(UserError, match="--flag-class 7"):
        ServedClasses.of(detector, flagged=[7])
