"""Servers that answer as none should, or as some do: no crash, no lost grade, a clear word."""

from pathlib import Path
from typing import Any

import pytest
from judge_server import Reply, completion, error, grade, serve
from test_judge import Files, by_number, number_of, results, run
from typer.testing import CliRunner

from ra_hmd.cli.app import app
from ra_hmd.core.errors import UserError
from ra_hmd.experiments.judge.client import JudgeSettings

pytestmark = pytest.mark.slow


def choices(*given: Any, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion", "model": "m", "choices": list(given)} | more


SAID = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": grade(7)}}
NO_COMPLETIONS = {
    "no message": choices({"index": 0}),
    "null as message": choices({"index": 0, "message": None}),
    "null as choice": choices(None),
    "choices are text": choices() | {"choices": "seven"},
    "a list": [1, 2],
    "a text": '"seven"',
    "parts as content": choices(SAID | {"message": {"content": [{"type": "text", "text": grade(7)}]}}),
    "usage is text": choices(SAID, usage="much"),
    "model is a list": choices(SAID) | {"model": ["m"]},
}


@pytest.mark.parametrize("body", NO_COMPLETIONS.values(), ids=NO_COMPLETIONS)
def test_what_is_no_completion_fails_alone(tmp_path: Path, body: Any) -> None:
    with serve(lambda asked, before: (200, body) if number_of(asked) == 2 else by_number(asked, before)) as endpoint:
        done = run(Files(tmp_path), tmp_path / "out", endpoint.url, retries=1)
    assert (done.graded, done.failures) == (5, {"malformed": 1})
    assert results(tmp_path / "out")["m2"]["message"].startswith("no chat completion: ")


def test_counts_that_are_missing_are_no_failure(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        usage = {"prompt_tokens": None} if number_of(body) == 2 else {"prompt_tokens": 9, "completion_tokens": 1}
        return 200, choices(SAID, usage=usage)

    with serve(reply) as endpoint:
        done = run(Files(tmp_path), tmp_path / "out", endpoint.url)
    assert done.graded == 6
    assert done.usage["input_tokens"] is None


FILTERS = {
    "refusal": completion(None, refusal="I do not judge cakes."),
    "finish reason": completion("", finish="content_filter"),
    "status": (400, {"error": {"message": "filtered", "code": "content_filter", "param": "prompt"}}),
}


@pytest.mark.parametrize("answer", FILTERS.values(), ids=FILTERS)
def test_refused_texts_at_the_start_do_not_end_the_run(tmp_path: Path, answer: Reply) -> None:
    files = Files(tmp_path, 8)
    with serve(lambda body, before: answer if number_of(body) < 5 else by_number(body, before)) as endpoint:
        done = run(files, tmp_path / "out", endpoint.url)
        assert len(endpoint.requests) == 8
        assert (done.graded, done.failures) == (3, {"refused": 5})
        assert done.judge["response_format"] == "json_schema"
        endpoint.reply = lambda body, before: answer
        with pytest.raises(UserError, match="gave no grade"):
            run(files, tmp_path / "none", endpoint.url)
    assert not (tmp_path / "none" / "results.jsonl").exists()


def test_a_server_that_wants_its_limit_under_another_name(tmp_path: Path) -> None:
    def reply(body: dict[str, Any], before: int) -> Reply:
        if "max_tokens" in body:
            told = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": told, "param": "max_tokens", "code": "unsupported_parameter"}}
        assert body["max_completion_tokens"] == 500
        return by_number(body, before)

    with serve(reply) as endpoint:
        done = run(Files(tmp_path), tmp_path / "out", endpoint.url)
        assert len(endpoint.requests) == 7
    assert done.graded == 6
    assert done.judge["response_format"] == "json_schema"


@pytest.mark.parametrize("answer", ["Is it {{7}}? No.\n</think>\n{}", "<think>`</think>\n```json\n{}\n```"])
def test_thoughts_whose_beginning_is_in_the_prompt(tmp_path: Path, answer: str) -> None:
    with serve(lambda body, before: completion(answer.format(grade(6, "Not </think> yet.")))) as endpoint:
        assert run(Files(tmp_path), tmp_path / "out", endpoint.url).score.counts[6] == 6


def test_two_judges_of_whom_one_gives_all_the_same(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with serve(by_number) as endpoint:
        run(files, tmp_path / "one", endpoint.url)
        endpoint.reply = lambda body, before: completion(grade(4))
        flat = run(files, tmp_path / "flat", endpoint.url, model="flat", compare=tmp_path / "one").agreement
        same = run(files, tmp_path / "same", endpoint.url, model="same", compare=tmp_path / "flat").agreement
    assert (flat["spearman"], flat["kappa"]) == (None, 0.0)
    assert (same["kappa"], same["equal"]) == (None, 1.0)


def test_keys_rubrics_and_endpoints_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path)
    with serve(lambda body, before: error(500, "no oven")) as endpoint:
        words = ["judge", "--rationales", files.rationales, "--references", files.references, "--model", "m",
                 "--endpoint", endpoint.url, "--output", tmp_path / "out"]  # fmt: skip
        for key in ("\u2026", "abc\n", "a b"):
            monkeypatch.setenv("OPENAI_API_KEY", key)
            done = CliRunner().invoke(app, list(map(str, words)))
            assert done.exit_code == 2
            assert "The value of OPENAI_API_KEY is no key" in done.output
        assert not endpoint.requests
    with pytest.raises(UserError, match=r"--rubric .*none\.md does not exist"):
        run(files, tmp_path / "out", endpoint.url, rubric=tmp_path / "none.md")
    (tmp_path / "latin.md").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.md is not UTF-8"):
        run(files, tmp_path / "out", endpoint.url, rubric=tmp_path / "latin.md")
    with pytest.raises(UserError, match="limit is 0"):
        run(files, tmp_path / "out", endpoint.url, limit=0)
    with pytest.raises(UserError, match="gave no grade.*\n.*connection: Connection error. .*refused"):
        run(files, tmp_path / "out", endpoint.url, retries=0)  # nobody is there any more
    for url in ("http://[::1", "http://localhost:port/v1", "http://localhost:99999/v1", "http:///v1"):
        with pytest.raises(UserError, match="is no URL of an API"):
            JudgeSettings(endpoint=url, model="m")
    with pytest.raises(UserError, match="holds a query"):
        JudgeSettings(endpoint="http://localhost:8000/v1?key=secret", model="m")
