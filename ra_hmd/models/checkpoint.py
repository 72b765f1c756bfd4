"""Opening what Stage 1 left: a LoRA run, a fully tuned run, a merged export, one of their checkpoints, or a bare LMM.

Nothing is loaded here: `meme_model.MemeModel` does that.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ra_hmd.core.artifacts import MANIFEST_NAME, STATED_IF_PRESENT, fingerprint_model, read_json, sha256_file
from ra_hmd.core.config import load_settings
from ra_hmd.core.errors import UserError
from ra_hmd.core.manifests import Stage1Manifest, read_manifest
from ra_hmd.data.guidance import GUIDANCE_FILE, Guidance
from ra_hmd.models.cluster_assignment import Clusters
from ra_hmd.models.experts.files import has_experts
from ra_hmd.models.experts.settings import EXPERT_WEIGHTS
from ra_hmd.models.families import described, family_of
from ra_hmd.models.head import HEAD_WEIGHTS, has_head
from ra_hmd.models.stage1_config import read_stage1_config
from ra_hmd.models.tokenization import InputSettings

ADAPTER_CONFIG = "adapter_config.json"
CLUSTERS_FOLDER = "clusters"
ADDITIVE = ("eva", "gaussian", "orthogonal")
"""PEFT's initialisations by name that leave the base model's weights as they are."""


@dataclass(frozen=True)
class Run:
    """Location and settings of a trained (or bare) LMM.

    Attributes:
        folder: The run; its head is read from here.
        settings: How memes become tokens.
        base_model: Path or hub name of the LMM.
        base_adapters: Adapters that were merged into the LMM before training.
        adapter: Folder of the trained adapter, or None where the weights themselves were tuned.
        head: Folder of the head, or None for a bare LMM.
        loading: How LLaMA-Factory loaded the LMM: quantisation, revision, RoPE scaling; as in training.
        media_dir: Where training looked for images.
        experts: Folder of the trained experts, or None for a model without.
        clusters: Clusters that memes are assigned to, or None where neither experts nor guidance need them.
        guidance: Guidance that a cluster's prompts have, or None.
    """

    folder: Path
    settings: InputSettings
    base_model: str
    base_adapters: tuple[str, ...] = ()
    adapter: Path | None = None
    head: Path | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    media_dir: str | None = None
    experts: Path | None = None
    clusters: Clusters | None = None
    guidance: Guidance | None = None

    @property
    def quantized(self) -> bool:
        """Whether the LMM is loaded in 4 or 8 bits."""
        return self.loading.get("quantization_bit") is not None

    def untuned(self) -> "Run":
        """The LMM as it was before training, with this run's prompt.

        Raises:
            UserError: the weights themselves were tuned, or there is no training to leave aside.
        """
        if self.adapter is None:
            raise UserError(
                f"{self.folder} has no adapter that could be left aside (view `untuned`): it is the model itself. Take "
                "a run with an adapter, or make a store of the model before training with --backbone-only."
            )
        return replace(self, adapter=None, head=None, experts=None)

    def folding(self, fold_captions: bool = True) -> "Run":
        """This run with captions folded; with False as it is."""
        return replace(self, settings=self.settings.replace(fold_captions=True)) if fold_captions else self

    def fingerprint(self) -> dict[str, Any]:
        """Everything but the meme that a hidden state depends on; equal fingerprints give equal features."""
        adapter = None if self.adapter is None else sha256_file(self.adapter / "adapter_model.safetensors")
        parts = {
            "model": fingerprint_model(self.base_model),
            "base_adapters": [adapter_digest(path) for path in self.base_adapters],
            "adapter": adapter,
            "experts": None if self.experts is None else sha256_file(self.experts / EXPERT_WEIGHTS),
            "head": None if self.head is None else sha256_file(self.head / HEAD_WEIGHTS),
            **{f"loading.{name}": value for name, value in self.loading.items()},
            **{f"inputs.{name}": value for name, value in self.settings.to_dict().items()},
        }
        return {name: value for name, value in parts.items() if value is not None or name not in STATED_IF_PRESENT}


def open_run(folder: str | Path, base_model: str | None = None) -> Run:
    """Open a Stage 1 run, one of its checkpoints, or its merged export.

    Args:
        folder: The folder, with `ra_hmd.json` and a head.
        base_model: Where the base model lies, if it is no longer where the manifest says.

    Raises:
        UserError: not such a folder, or the base model is gone or is another one than in training.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the output_dir of a Stage 1 run.")
    if not (folder / MANIFEST_NAME).is_file() or not has_head(folder):
        if (folder / "classifier.bin").is_file():
            raise UserError(
                f"{folder} is an official RA-HMD checkpoint; convert it once with `ra-hmd import-official {folder} "
                "--output RUN` and give RUN."
            )
        raise UserError(
            f"{folder} is not a Stage 1 run: {MANIFEST_NAME} and a head are needed. For a model without a head use "
            "--backbone-only."
        )
    manifest = read_manifest(folder / MANIFEST_NAME, Stage1Manifest)
    settings = load_settings(InputSettings, manifest.inputs or {}, folder / MANIFEST_NAME)
    clusters, guidance = read_clusters_and_guidance(folder, settings)
    media_dir = manifest.argument("data", "media_dir")
    if not (folder / ADAPTER_CONFIG).is_file():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds a head, but neither an adapter nor a model; give the Stage 1 run.")
        whole = Run(folder, settings, base_model=str(folder), head=folder, media_dir=media_dir)
        return replace(whole, clusters=clusters, guidance=guidance)
    check_adapter(folder)
    check_merged_adapters(manifest)
    return Run(
        folder,
        settings,
        base_model=_base_model(manifest, base_model),
        base_adapters=tuple(manifest.base_model.adapters),
        adapter=folder,
        head=folder,
        loading=dict(manifest.base_model.loading),
        media_dir=media_dir,
        experts=_experts(manifest, folder),
        clusters=clusters,
        guidance=guidance,
    )


def read_clusters_and_guidance(folder: Path, settings: InputSettings) -> tuple[Clusters | None, Guidance | None]:
    """Open the clusters and the guidance of a run, which lie beside its weights.

    Raises:
        UserError: they are missing, or others than the run was trained with.
    """
    clusters = None if settings.clusters is None else Clusters.open(folder / CLUSTERS_FOLDER)
    guidance = None if settings.guidance is None else Guidance.open(folder / GUIDANCE_FILE)
    for name, found, expected in (
        (CLUSTERS_FOLDER, clusters, settings.clusters),
        (GUIDANCE_FILE, guidance, settings.guidance),
    ):
        if found is not None and found.digest != expected:
            raise UserError(
                f"{folder / name} is not what the run was trained with (its digest is {found.digest}, {expected} was "
                "recorded); put the original back, it decides the scores."
            )
    return clusters, guidance


def _experts(manifest: Stage1Manifest, folder: Path) -> Path | None:
    if manifest.argument("finetuning", "llm_moe") and not has_experts(folder):
        raise UserError(
            f"{folder} was trained with experts, and {EXPERT_WEIGHTS} is missing there: without them its scores are "
            "another model's. Copy the whole folder of the run."
        )
    return folder if has_experts(folder) else None


def adapter_digest(path: str) -> str:
    """Fingerprint of an adapter's weights; a hub name is its own."""
    weights = Path(path) / "adapter_model.safetensors"
    return sha256_file(weights) if weights.is_file() else f"hub:{path}"


def _base_model(manifest: Stage1Manifest, given: str | None) -> str:
    recorded = manifest.base_model
    path = given or recorded.path
    if not Path(path).is_dir():
        if given is None and (path.startswith((".", "/", "~")) or not recorded.fingerprint.startswith("hub:")):
            raise UserError(f"The base model {path} is gone; say where it is with --base-model.")
        return path
    check_base_model(manifest, path)
    return path


def check_base_model(manifest: Stage1Manifest, path: str) -> None:
    """Raise `UserError` where the model at `path` is not the base model that a run's manifest states.

    A hub name and a folder cannot be compared.
    """
    recorded, found = manifest.base_model, fingerprint_model(path)
    if recorded.fingerprint.startswith("hub:") == found.startswith("hub:") and found != recorded.fingerprint:
        raise UserError(
            f"{path} is not the base model that this run was trained on, {recorded.path} (its fingerprint differs)."
        )


def check_merged_adapters(manifest: Stage1Manifest) -> None:
    """Raise `UserError` where adapters that were merged into a run's base model are no longer what they were."""
    adapters = manifest.base_model.adapters
    digests = manifest.base_model.adapter_digests or map(adapter_digest, adapters)  # older runs have none
    for adapter, digest in zip(adapters, digests, strict=True):
        check_adapter(adapter)
        if adapter_digest(adapter) != digest:
            raise UserError(f"{adapter} is gone or has changed since it was merged into the base model of this run.")


def check_adapter(place: str | Path) -> None:
    """Raise `UserError` for a LoRA adapter whose initialisation rewrote the weights of the base model below it.

    Loading it decomposes the base model again, PiSSA by random numbers, so neither training nor extraction would have
    the weights that it belongs to.
    """
    config = Path(place) / ADAPTER_CONFIG
    if not config.is_file():
        return
    kind = read_json(config).get("init_lora_weights")
    if isinstance(kind, str) and kind.lower() not in ADDITIVE:
        raise UserError(
            f"The adapter in {place} was initialised by {kind!r}, which rewrites the base model's weights; they are "
            "not saved with it, so its scores cannot be made again. Take an adapter that is a plain difference "
            f"(initialised by true or one of {', '.join(ADDITIVE)}; PEFT converts others while it saves them, by "
            "`path_initial_model_for_weight_conversion`)."
        )


def open_backbone(
    model: str,
    template: str | None = None,
    base_model: str | None = None,
    *,
    config: str | Path | None = None,
    clusters: str | Path | None = None,
    guidance: str | Path | None = None,
) -> Run:
    """A bare LMM as a run without head.

    Args:
        model: A model folder or hub name, or a Stage 1 run whose tuning is left aside.
        template: Template of LLaMA-Factory; default is the family's.
        base_model: Where the base model of a Stage 1 run lies now.
        config: Stage 1 YAML file that says how memes become tokens and how the model is loaded.
        clusters: Folder of clusters, for guidance.
        guidance: Guidance file; each meme's prompt has the text of its cluster.

    Raises:
        UserError: a model that cannot be loaded; guidance without clusters, or made for other ones.
    """
    run = _bare(model, template, base_model)
    if config is not None:
        stated = read_stage1_config(config)
        inputs = stated.inputs if template is None else stated.inputs.replace(template=template)
        run = replace(run, settings=inputs, loading=stated.loading)
    if clusters is None and guidance is None:
        return run
    opened, texts = open_clusters_and_guidance(clusters, guidance)
    settings = run.settings.replace(clusters=opened.digest, guidance=None if texts is None else texts.digest)
    return replace(run, settings=settings, clusters=opened, guidance=texts)


def open_clusters_and_guidance(
    clusters: str | Path | None, guidance: str | Path | None
) -> tuple[Clusters, Guidance | None]:
    """Open clusters, and guidance that was made for them.

    Raises:
        UserError: guidance without clusters, or made for other ones.
    """
    if clusters is None:
        raise UserError(f"The guidance {guidance} has a text for each cluster; give the folder of the clusters too.")
    opened = Clusters.open(clusters)
    if guidance is None:
        return opened, None
    texts = Guidance.open(guidance)
    texts.check(opened.digest, opened.count)
    return opened, texts


def _bare(model: str, template: str | None, base_model: str | None) -> Run:
    from transformers import AutoConfig

    folder = Path(model)
    if (folder / ADAPTER_CONFIG).is_file() and (folder / MANIFEST_NAME).is_file():
        run = open_run(folder, base_model)
        return replace(run, adapter=None, head=None, experts=None)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"{model} is neither a model folder nor a model name that can be loaded: {error}") from error
    if template is None:
        family = family_of(config)
        if family is None:
            raise UserError(f"No template is known for a {described(config)} model; give one with --template.")
        template = family.templates[0]
    return Run(folder, InputSettings(template=template), base_model=model)
