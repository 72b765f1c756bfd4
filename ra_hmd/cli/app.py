"""`ra-hmd`: assembles the commands. Each command is its options and one call into the library."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ra_hmd.cli.attack import attack_app
from ra_hmd.cli.bank import bank_app
from ra_hmd.cli.bank_attack import bank_attack_app
from ra_hmd.cli.bank_review import bank_review_app
from ra_hmd.cli.cases import cases_app
from ra_hmd.cli.data import data_app
from ra_hmd.cli.doctor import doctor_app
from ra_hmd.cli.evaluate import evaluation_app
from ra_hmd.cli.experiments import experiments_app
from ra_hmd.cli.features import features_app, models_app
from ra_hmd.cli.few_shot import few_shot_app
from ra_hmd.cli.finish import guide
from ra_hmd.cli.guide import EPILOG, STEPS, WAY
from ra_hmd.cli.hash_lists import hash_lists_app
from ra_hmd.cli.init import init_app
from ra_hmd.cli.object_stores import check_urls
from ra_hmd.cli.options import GROUP
from ra_hmd.cli.predict import prediction_app
from ra_hmd.cli.push import push_app
from ra_hmd.cli.retention import retention_app
from ra_hmd.cli.serve import serve_app
from ra_hmd.cli.train import training_app
from ra_hmd.core.errors import UserError


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send, into `SystemExit`, so that temporary files are removed and child processes
    ended.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Group(TyperGroup):
    """Lists the commands in the order of the steps; prints a `UserError`, or the system's error about a file, as a
    sentence, and exits with code 2.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        order = {name: place for place, name in enumerate(name for commands in STEPS.values() for name in commands)}
        return sorted(super().list_commands(ctx), key=lambda name: order.get(name, len(order)))

    def invoke(self, ctx: Any) -> Any:
        try:
            check_urls([*getattr(ctx, "_protected_args", ()), *ctx.args])
            with _ended_by_sigterm():
                return super().invoke(ctx)
        except UserError as error:
            message = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            message = f"{error.filename}: {error.strerror}."
        typer.secho(f"Error: {message}", fg=typer.colors.RED, err=True)
        raise typer.Exit(2)


app = typer.Typer(cls=_Group, help=WAY, epilog=EPILOG, **{**GROUP, "add_completion": True})
app.add_typer(data_app, name="data")
bank_app.add_typer(hash_lists_app)
bank_app.add_typer(bank_review_app)
bank_app.add_typer(bank_attack_app)
app.add_typer(bank_app, name="bank")
app.add_typer(features_app, name="features")
app.add_typer(cases_app, name="cases")
app.add_typer(retention_app, name="retention")
for commands in (
    init_app,
    models_app,
    training_app,
    evaluation_app,
    attack_app,
    prediction_app,
    serve_app,
    push_app,
    experiments_app,
    few_shot_app,
    doctor_app,
):
    app.add_typer(commands)
guide(app)


if __name__ == "__main__":
    app()
