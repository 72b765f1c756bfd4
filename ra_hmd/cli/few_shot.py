"""Commands of few-shot detection by clusters, guidance and experts."""

import functools
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ra_hmd.cli import options as o
from ra_hmd.cli.finish import Outcome
from ra_hmd.cli.options import command_line, from_settings, print_notes
from ra_hmd.clusters.guidance_settings import MemberSettings, PictureSettings, TeacherOptions, TeacherSettings
from ra_hmd.clusters.settings import ClusterSettings, ClusterSource
from ra_hmd.core.errors import UserError
from ra_hmd.core.extras import check_extra

if TYPE_CHECKING:
    from ra_hmd.core.manifests import ClustersManifest
    from ra_hmd.data.guidance import Guidance
    from ra_hmd.data.meme import Meme
    from ra_hmd.features.store import Features

few_shot_app = typer.Typer()


@few_shot_app.command("cluster")
@from_settings
def cluster_command(
    output: o.Output, settings: ClusterSettings, given: ClusterSource, source: o.SourceOptions
) -> Outcome:
    """Cluster the memes of a training split by a frozen encoder's features, without labels (docs/clusters.md).

    With --encoder, an interrupted command that is started again continues.
    """
    if (given.features is None) == (given.encoder is None):
        which = "Both are given" if given.features else "Neither is given"
        raise UserError(f"{which}: --features STORE clusters a store, --data DATA with --encoder ENCODER makes one.")
    if given.features is not None:
        manifest = _cluster_store(given.features, output, settings, given, source)
    elif given.data is None or given.encoder is None:
        raise UserError("--encoder needs --data: the memes that it encodes.")
    else:
        manifest = _cluster_memes(given.data, given.encoder, output, settings, given, source)
    print_notes(manifest.notes)
    line = f"{output}: {manifest.count} clusters of {manifest.rows} memes, {', '.join(map(str, manifest.sizes))}"
    return Outcome(manifest.to_json(), [line])


def _cluster_store(
    features: Path, output: Path, settings: ClusterSettings, given: ClusterSource, source: o.SourceOptions
) -> "ClustersManifest":
    from ra_hmd.clusters.run import cluster_store

    of_encoder = {"--task": source.task, "--limit": source.limit}
    of_encoder |= {"--long-text": given.long_text, "--revision": given.revision}
    unused = [name for name, value in of_encoder.items() if value is not None]
    if unused:
        raise UserError(f"{', '.join(unused)}: with --features the store is as `ra-hmd encode` made it.")
    return cluster_store(
        features,
        output,
        settings,
        split=given.split,
        lookup=lambda found: _find_memes(found, given.data, given.split, source),
        show=True,
    )


def _cluster_memes(
    data: str, encoder: str, output: Path, settings: ClusterSettings, given: ClusterSource, source: o.SourceOptions
) -> "ClustersManifest":
    from ra_hmd.clusters.run import cluster_memes
    from ra_hmd.models.encoder_files import EncoderSettings
    from ra_hmd.models.encoders import open_encoder

    chosen = EncoderSettings(
        path=encoder, revision=given.revision, long_text=given.long_text or "truncate", dtype=given.dtype
    )
    split = given.split or "train"
    memes, described = source.read(data, split)
    return cluster_memes(
        memes[: source.limit],
        output,
        open_encoder(chosen),
        settings,
        split=split,
        source=described,
        label_classes=source.label_classes(data),
        batch_size=given.batch_size,
        num_workers=given.workers,
        show=True,
    )


def _find_memes(features: "Features", data: str | None, split: str | None, source: o.SourceOptions) -> "list[Meme]":
    """The memes of a store, for their images; without them a note is printed."""
    from ra_hmd.clusters.members import find_memes

    memes, note = find_memes(features, data, split, dataset_dir=source.dataset_dir, media_dir=source.media_dir)
    print_notes([note] if note else [])
    return memes


@few_shot_app.command("guidance")
@from_settings
def guidance_command(
    clusters: Annotated[Path, typer.Argument(help="Folder of `ra-hmd cluster`.")],
    output: o.Output,
    teacher: TeacherOptions,
    members: MemberSettings,
    pictures: PictureSettings,
    source: Annotated[o.SourceOptions, o.Without("task", "limit")],
    data: Annotated[
        str | None,
        typer.Option(
            help="The memes that the clusters were fitted on: imported folder, file, or data set name; default: the "
            "place that the clusters state."
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option("--from", help="Take the texts from a JSON or YAML file, or from a folder of 0.txt, 1.txt, …"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the texts with the memes that the teacher saw.")] = False,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the API's key.")] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    cache: Annotated[Path | None, typer.Option(help="Folder of answers; default: a folder beside --output.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave the text of a cluster empty where the teacher gives none.")
    ] = False,
) -> Outcome:
    """Write for each cluster a text that tells the model what to look at (docs/clusters.md).

    A teacher writes them. Some memes of each cluster, words and images, ARE SENT TO ITS ENDPOINT: of the training split
    alone, and without labels. A command that was interrupted and is started again asks only for what is missing. With
    --from, or with --show alone, nothing is sent.
    """
    from ra_hmd.clusters.guidance_members import Data
    from ra_hmd.clusters.guidance_review import print_guidance
    from ra_hmd.data.guidance import Guidance

    if (texts is not None) + (teacher.endpoint is not None) + show == 0:
        raise UserError(
            "Say where the texts come from: --endpoint and --model ask a teacher, --from takes files; --show alone "
            "prints what --output holds."
        )
    if texts is not None and teacher.endpoint is not None:
        raise UserError("--from takes the texts from files, and --endpoint asks a teacher; give one of them.")
    place = Data(data, source.dataset_dir, source.media_dir)
    if texts is not None:
        from ra_hmd.clusters.guidance import take_texts

        guidance = take_texts(clusters, texts, output, command=command_line())
    elif teacher.endpoint is not None:
        asked = {"members": members, "pictures": pictures, "cache": cache, "concurrency": concurrency}
        guidance = _asked(clusters, output, teacher, api_key_env, data=place, partial=partial, **asked)
    else:
        guidance = Guidance.open(output)
    written = texts is not None or teacher.endpoint is not None
    if written and guidance.manifest is not None:
        print_notes(guidance.manifest.notes)
    shown = [functools.partial(print_guidance, guidance, place)] if show else []
    return Outcome({"output": output, "texts": guidance.texts}, [*shown, *([output] if written else [])])


def _asked(clusters: Path, output: Path, teacher: TeacherOptions, variable: str, **asked: Any) -> "Guidance":
    """Guidance of a teacher."""
    check_extra("judge", "A teacher")
    from accelerate import PartialState

    from ra_hmd.clusters.guidance import ask_teacher
    from ra_hmd.models.generation.endpoint import api_key

    settings, key = TeacherSettings(**teacher.model_dump()), api_key(variable)
    device = PartialState().device if asked["pictures"].describe_with is not None else None
    return ask_teacher(clusters, output, settings, key=key, device=device, command=command_line(), **asked)


@few_shot_app.command("export-clusters")
def export_clusters_command(
    run: Annotated[Path, typer.Argument(help="Stage 1 run with `llm_moe: true` and `router_input: none`.")],
    output: o.Output,
    base_model: Annotated[str | None, typer.Option(help="Where its base model lies now.")] = None,
) -> Outcome:
    """Write a run whose experts are routed by the cluster alone as plain LoRA adapters, one per cluster."""
    from ra_hmd.clusters.export import ADAPTERS, export_clusters

    manifest = export_clusters(run, output, base_model, command=command_line())
    line = f"{output / ADAPTERS}: {len(manifest.adapters)} adapters of rank {manifest.rank}"
    return Outcome(manifest.to_json(), [line])


@few_shot_app.command("few-shot")
def few_shot_command(
    config: Annotated[Path, typer.Argument(help="YAML file: data, recipe, clusters, guidance, arms (docs/ssmoe.md).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value …")] = None,
    final: o.Final = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and print the commands without a run.")] = False,
) -> Outcome:
    """Compare SSMoE with its baselines on K labelled memes of each class, under one recipe. Can be resumed."""
    from ra_hmd.core.config import load_yaml
    from ra_hmd.experiments.few_shot.config import FewShotSettings
    from ra_hmd.experiments.few_shot.run import plan_few_shot, run_few_shot

    settings = load_yaml(FewShotSettings, config, overrides or [])
    if dry_run:
        return Outcome({"steps": [asdict(step) for step in plan_few_shot(settings)]})
    words = ["ra-hmd", "few-shot", str(config), *(overrides or []), *(["--final"] if final else [])]
    return Outcome({"report": run_few_shot(settings, final=final, command=shlex.join(words))})
