"""`ra-hmd judge`."""

import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.options import Output
from ra_hmd.core.errors import UserError

judge_app = typer.Typer()


@judge_app.command("judge")
def judge_command(
    rationales: Annotated[Path, typer.Option(help="Rows with id, rationale, verdict (`ra-hmd explain --output`).")],
    references: Annotated[Path, typer.Option(help="Rows with id, reference (text or list), perhaps label.")],
    endpoint: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible API: http://127.0.0.1:8000/v1.")],
    model: Annotated[str, typer.Option(help="Who judges, as the endpoint calls it.")],
    output: Output,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API's key; may be unset for a local server.")
    ] = "OPENAI_API_KEY",
    rubric: Annotated[Path | None, typer.Option(help="Text file with another rubric (docs/judge.md).")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="Of the judge's sampling.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 500,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that failed, or an answer without a grade.")] = 3,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request counts as failed.")] = 60.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at once.")] = 8,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers; default: cache/ in --output.")] = None,
    price_input: Annotated[float | None, typer.Option(min=0, help="Of a million input tokens, for the cost.")] = None,
    price_output: Annotated[float | None, typer.Option(min=0, help="Of a million output tokens.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rationales.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Leave out ids that only one file has.")] = False,
    compare: Annotated[
        Path | None, typer.Option(help="Output of another judge on the same rationales: do they agree?")
    ] = None,
    bootstrap_samples: Annotated[int, typer.Option(min=100, help="Resamples of each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
) -> None:
    """Grade rationales against human references, 0 to 10, by a language model (docs/judge.md).

    Stopped and started again, it asks only what was not answered.
    """
    if importlib.util.find_spec("openai") is None:
        raise UserError("Judging needs the extra `judge`: pip install 'ra-hmd[judge]'.")
    key = os.environ.get(api_key_env)
    if key and not re.fullmatch("[!-~]+", key):
        raise UserError(f"What is in {api_key_env} is no key: it has blanks, a line's end or letters beyond ASCII.")
    from ra_hmd.experiments.judge.client import JudgeSettings
    from ra_hmd.experiments.judge.run import Prices, judge

    done = judge(
        rationales,
        references,
        output,
        JudgeSettings(
            endpoint=endpoint,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            retries=retries,
            timeout=timeout,
        ),
        key=key,
        rubric=rubric,
        cache=cache,
        concurrency=concurrency,
        prices=Prices(tokens_in=price_input, tokens_out=price_output),
        limit=limit,
        partial=partial,
        compare=compare,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
        command=shlex.join(["ra-hmd", *sys.argv[1:]]),
    )
    for note in done["notes"]:
        typer.echo(note, err=True)
    print(output / "report.md")
