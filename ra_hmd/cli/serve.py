"""`ra-hmd serve`, `ra-hmd console`, and `ra-hmd serve-key`."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cases.policy import CasePolicy
from ra_hmd.cli.options import Without, from_settings
from ra_hmd.cli.options_file import ConfigFile
from ra_hmd.desk.settings import ConsoleSettings, with_database
from ra_hmd.inference.options import RationaleOptions, ServedDetectorOptions
from ra_hmd.serve.case_settings import CaseSettings
from ra_hmd.serve.jobs_settings import JobSettings
from ra_hmd.serve.limits import BatchingSettings, FollowSettings, RequestLimits
from ra_hmd.serve.options import AddressOptions, ClassOptions, ReplicaOptions, ServerSettings

serve_app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(help="Folder with the head whose verdicts are served.")]
Reference = Annotated[Path | None, typer.Option(help=ServerSettings.model_fields["reference"].description)]
DetectorFields = Annotated[ServedDetectorOptions, Without("batch_size")]
BatchingFields = Annotated[BatchingSettings, Without("prepare_threads")]
FollowFields = Annotated[FollowSettings, Without("follow_seconds")]
LimitFields = Annotated[RequestLimits, Without("max_concurrent", "memory_factor")]
RationaleFields = Annotated[RationaleOptions, Without("question", "engine", "without_adapter", "tensor_parallel_size")]


@serve_app.command("serve")
@from_settings
def serve_command(
    run: RunFolder,
    address: AddressOptions,
    detector: DetectorFields,
    batching: BatchingFields,
    limits: LimitFields,
    follow: FollowFields,
    replicas: ReplicaOptions,
    rationale: RationaleFields,
    jobs: JobSettings,
    classes: ClassOptions,
    cases: CaseSettings,
    policy: CasePolicy,
    reference: Reference = None,
    config: ConfigFile = None,
) -> None:
    """Serve verdicts, rationales and changes of the example bank over HTTP (docs/api.md).

    Logs go to stderr, one JSON line per request, without images and captions. On SIGTERM, accepted requests are
    answered first.
    """
    from ra_hmd.serve.server import serve

    settings = ServerSettings(
        run=run,
        detector=detector,
        address=address,
        batching=batching,
        limits=limits,
        follow=follow,
        replicas=replicas,
        rationale=rationale,
        reference=reference,
        jobs=jobs,
        classes=classes,
        cases=cases,
        policy=policy,
    )
    serve(settings)


@serve_app.command("console")
@from_settings
def console_command(
    run: RunFolder,
    console: ConsoleSettings,
    address: AddressOptions,
    detector: DetectorFields,
    batching: BatchingFields,
    limits: LimitFields,
    follow: FollowFields,
    replicas: ReplicaOptions,
    rationale: RationaleFields,
    jobs: JobSettings,
    cases: CaseSettings,
    policy: CasePolicy,
    reference: Reference = None,
    config: ConfigFile = None,
) -> None:
    """The moderators' desk, in the same app as the API: decide on cases, check a meme, correct the bank
    (docs/console.md). Prints its address. Cases are kept beside the bank, unless --cases names another place.
    """
    from ra_hmd.desk.server import serve_console

    server = ServerSettings(
        run=run,
        detector=detector,
        address=address,
        batching=batching,
        limits=limits,
        follow=follow,
        replicas=replicas,
        rationale=rationale,
        reference=reference,
        jobs=jobs,
        classes=ClassOptions(class_names=console.class_names),
        cases=with_database(cases, run, detector.bank),
        policy=policy,
    )
    serve_console(server, console)


@serve_app.command("serve-key")
def serve_key_command(
    name: Annotated[str, typer.Argument(help="Owner of the key: the author of the changes made with it.")],
    keys: Annotated[Path, typer.Option(help="File of keys; made if it is missing.")],
    role: Annotated[str, typer.Option(help="reader (asks) or moderator (also changes the bank).")] = "reader",
    rate_limit: Annotated[int | None, typer.Option(min=1, help="Most requests a minute, in place of serve's.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take this name's key out instead.")] = False,
) -> None:
    """Make a key for the API and the console. It is shown this once; the file keeps its hash. A running service knows
    the keys that were there when it was started.
    """
    from ra_hmd.serve.auth import make_key, remove_key

    if remove:
        remove_key(keys, name)
        typer.echo(f"{keys} has no key of {name} any more; start the service anew.", err=True)
        return
    print(make_key(keys, name, role, rate_limit))
    typer.echo(f"The key of {name} ({role}), shown this once: keep it. {keys} has its hash.", err=True)
