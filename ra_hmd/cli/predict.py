"""`ra-hmd predict` and `ra-hmd explain`."""

from pathlib import Path
from typing import Annotated

import typer

from ra_hmd.cli.options import Without, command_line, from_settings, print_notes
from ra_hmd.core.workers.settings import WorkerSettings
from ra_hmd.inference.options import DetectorOptions, InputOptions, RationaleOptions
from ra_hmd.models.pooling.settings import BackendSettings

prediction_app = typer.Typer()

BACKEND = tuple(BackendSettings.model_fields)  # the engine of rationales has the model in this process


@prediction_app.command("predict")
@from_settings
def predict_command(
    checkpoint: Annotated[Path, typer.Option(help="Folder with a head.")],
    inputs: InputOptions,
    detector: DetectorOptions,
    engine: WorkerSettings,
) -> None:
    """Classify images, a file or folder of memes, or a feature store (docs/evaluation.md).

    With --input, an interrupted command that is started again continues; also under torchrun, and on a Ray cluster.
    """
    from ra_hmd.inference.request import PredictionRequest

    request = PredictionRequest(checkpoint=checkpoint, inputs=inputs, detector=detector, engine=engine)
    print_notes(request.run(command_line()))


@prediction_app.command("explain")
@from_settings
def explain_command(
    checkpoint: Annotated[Path, typer.Option(help="Run with a language model, whose verdicts are explained.")],
    inputs: Annotated[InputOptions, Without("queries", "style")],
    rationale: RationaleOptions,
    detector: Annotated[DetectorOptions, Without("weights", "min_similarity", "prior_correction", *BACKEND)],
) -> None:
    """Classify memes and generate rationales by the language model. A rationale is not the verdict's cause.

    With --input, an interrupted command that is started again continues; also under torchrun.
    """
    from ra_hmd.inference.request import PredictionRequest

    request = PredictionRequest(checkpoint=checkpoint, inputs=inputs, detector=detector, rationale=rationale)
    print_notes(request.run(command_line()))
