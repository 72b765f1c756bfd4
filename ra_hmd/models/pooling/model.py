"""The LMM of a run in vLLM, and its heads here: a `FeatureModel` without the weights of the LMM.

Shapes: B memes of a batch, W answers, H hidden size of the LMM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from ra_hmd.core.artifacts import read_json
from ra_hmd.core.choices import DType
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.data.images import to_rgb
from ra_hmd.data.meme import Meme
from ra_hmd.models.checkpoint import ADAPTER_CONFIG, Run
from ra_hmd.models.generation.engines import choose_engine, vllm_version
from ra_hmd.models.head import load_head, read_head_config
from ra_hmd.models.meme_model import load_encoder
from ra_hmd.models.pooling.engine import EngineStates
from ra_hmd.models.pooling.prompts import Prompt, PromptMaker
from ra_hmd.models.pooling.servers import ServerStates
from ra_hmd.models.pooling.settings import BackendSettings
from ra_hmd.models.pooling.states import StateCheck, StateSource
from ra_hmd.models.pooling.weights import answer_rows, final_norm
from ra_hmd.models.tokenization import MemeEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_PROBE = Image.new("RGB", (224, 160), (90, 140, 200))
_LM_HEAD = ("lm_head", "embed_tokens")  # in names of layers that the heads read past vLLM, or that vLLM does not tune
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


class PooledRun:
    """A run whose LMM vLLM has: checked, and without its weights. Its copy in another process opens it again there,
    when it loads the model.

    Args:
        run: The run.
        settings: The backend.
        dtype: Precision of the model, where vLLM is started here.
        version: Version of vLLM that it must be; default: any.

    Raises:
        UserError: a run whose heads do not follow from what vLLM answers, vLLM that is not installed, of another
            version, or see `ServerStates`.
    """

    def __init__(self, run: Run, settings: BackendSettings, dtype: DType = "auto", version: str | None = None) -> None:
        check_servable(run)
        self.run, self.settings, self.dtype = run, settings, dtype
        self.config = AutoConfig.from_pretrained(run.base_model, revision=_revision(run))
        width = self.config.get_text_config().hidden_size
        if run.head is not None and read_head_config(run.head).input_dim != width:
            raise UserError(f"The head in {run.head} does not fit {run.base_model} (hidden size {width}).")
        encoder, _ = load_encoder(run.base_model, run.settings, **run.loading)
        self.maker = PromptMaker(encoder, self.config.image_token_id, by_messages=bool(settings.urls))
        self.check = StateCheck(width, final_norm(run.base_model, _revision(run), self.config))
        self._servers = self._greeted() if settings.urls else None
        self.version = vllm_version("--backend") if self._servers is None else self._servers.version
        if version not in (None, self.version):
            raise UserError(f"The features are of vLLM {version}, and here is {self.version}; a store has one version.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _ElsewhereOpened, (self.run, self.settings, self.dtype, self.version)

    @property
    def engine(self) -> dict[str, str]:
        """What the features' fingerprint says of the engine; features by transformers do not state one."""
        return {"engine": f"vllm {self.version}"}

    def load(self, device: torch.device) -> "PooledModel":
        """Start vLLM, where no servers have the model, and load the heads onto a device.

        Raises:
            UserError: a model without the tensors that are needed of it; see `EngineStates`.
        """
        states: StateSource | None = self._servers
        if states is None:
            choose_engine("vllm", "--backend")
            states = EngineStates(self.run, self.maker, self.check, self.settings.engine_gpus, self.dtype)
        return PooledModel(self.run, self.config, self.maker, states, device)

    def _greeted(self) -> ServerStates:
        if self.dtype != "auto":
            raise UserError(f"--dtype {self.dtype} is decided by the vLLM server (its own --dtype); leave it out.")
        try:
            probe = self.maker("a drawn picture", _PROBE)
        except UserError as error:
            raise UserError(f"{self.run.folder} cannot be asked through --engine-url: {error}.") from error
        return ServerStates(self.run, self.settings, self.check, probe)


class _ElsewhereOpened:
    """What a `PooledRun` is in another process. Errors are those of `load`, which a worker passes on as they are."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments

    def load(self, device: torch.device) -> "PooledModel":
        """See `PooledRun.load`."""
        return PooledRun(*self._arguments).load(device)


def check_servable(run: Run) -> None:
    """Raise `UserError` for a run whose heads do not follow from the last token's state that vLLM answers."""
    settings, problems = run.settings, []
    if (settings.embed_mode, settings.embed_layer) != ("last_token", "last"):
        problems.append(
            f"its head reads {settings.embed_mode} of the {settings.embed_layer} layer, vLLM answers the last token's "
            "state of the last layer."
        )
    if run.experts is not None:
        problems.append("it has experts, whose routing vLLM cannot do.")
    if run.base_adapters:
        problems.append("it was trained on adapters merged into its base model; export the merged model and take that.")
    unknown = {name: value for name, value in run.loading.items() if name == "rope_scaling" and value is not None}
    if unknown:
        problems.append(f"it was trained with {unknown}, which a vLLM server cannot be asked about.")
    if run.adapter is not None:
        problems += _adapter_problems(run.adapter)
    raise_all(problems, f"{run.folder} cannot be run by vLLM; use --backend transformers")


def _adapter_problems(folder: Path) -> list[str]:
    """What vLLM does not do of an adapter."""
    from safetensors import safe_open

    config = read_json(folder / ADAPTER_CONFIG)
    targets = config.get("target_modules") or []
    named = [targets] if isinstance(targets, str) else list(targets)
    with safe_open(str(folder / _ADAPTER_WEIGHTS), "pt") as weights:
        named += weights.keys()
    odd = {
        "peft_type": config.get("peft_type", "LORA") != "LORA",
        "use_dora": bool(config.get("use_dora")),
        "bias": config.get("bias", "none") != "none",
        "modules_to_save": bool(config.get("modules_to_save")),
        "rank_pattern": bool(config.get("rank_pattern")),
        "alpha_pattern": bool(config.get("alpha_pattern")),
        "target_modules": any(part in name for name in named for part in _LM_HEAD),
    }
    return [f"its adapter has `{name}: {config.get(name)}`, and vLLM takes plain LoRA on layers below the LM head."
            for name, found in odd.items() if found]  # fmt: skip


class PooledModel:
    """The heads of a run on hidden states of vLLM: a `FeatureModel`, as `MemeModel` is one.

    Args:
        run: The run.
        config: Configuration of its LMM.
        maker: Makes its prompts.
        states: Computes its hidden states.
        device: Where the heads run.
    """

    def __init__(
        self, run: Run, config: "PreTrainedConfig", maker: PromptMaker, states: StateSource, device: torch.device
    ) -> None:
        self.run, self.device, self._maker, self._states = run, device, maker, states
        self._assigner = None if run.clusters is None else run.clusters.load(device)
        ids = maker.encoder.answer_token_ids(run.settings.expected_answers)
        rows = answer_rows(run.base_model, _revision(run), config, ids) if ids else None
        self._rows = None if rows is None else rows.to(device)
        self._head = None if run.head is None else load_head(run.head).to(device)

    @property
    def encoder(self) -> MemeEncoder:
        """The run's encoder."""
        return self._maker.encoder

    def prepare(self, memes: Sequence[Meme]) -> None:
        """Assign memes to their clusters by batches; nothing to do without clusters."""
        if self._assigner is not None:
            self._assigner.prepare(memes)

    def encode(self, text: str, image: Image.Image) -> Prompt:
        """A meme as a prompt. Raises `UserError` when it does not fit the token budget."""
        guidance = ""
        if self._assigner is not None and self.run.guidance is not None:
            guidance = self.run.guidance.text_of(self._assigner(text, image))
        return self._maker(text, to_rgb(image), guidance)

    def length(self, row: Prompt) -> int:
        """Tokens of a prompt."""
        return len(row.ids)

    def collate(self, rows: list[Prompt]) -> list[Prompt]:
        """B prompts as they are."""
        return rows

    @torch.inference_mode()
    def columns(self, batch: list[Prompt]) -> dict[str, Tensor]:
        """Hidden states, answer probabilities and, with a head, its outputs for B prompts; each [B, …]."""
        hidden = self._states.states(batch).to(self.device)
        columns = {"hidden": hidden}
        if self._rows is not None:
            answers = (hidden @ self._rows.T).softmax(dim=-1)
            columns["lmh_score"] = answers[:, 1:] if self.run.settings.problem.kind == "binary" else answers
        if self._head is not None:
            scored = self._head(hidden)
            columns |= {"embedding": scored.embedding, "lrc_logit": scored.logits}
        return columns

    def untuned(self, batch: list[Prompt]) -> Tensor:
        """Hidden states [B, H] of the LMM without the run's adapter, by a request of its own."""
        return self._states.states(batch, tuned=False)


def _revision(run: Run) -> str:
    return run.loading.get("model_revision") or "main"
