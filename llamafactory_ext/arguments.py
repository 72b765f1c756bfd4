"""The YAML keys of stage `sft-classifier`, on top of LLaMA-Factory's own."""

from dataclasses import dataclass, field
from typing import Any, Literal

from llamafactory.hparams import FinetuningArguments

from ra_hmd.config import coerce_fields
from ra_hmd.data.sharegpt import OFFICIAL_PROMPT, Answers, PromptTemplate
from ra_hmd.errors import UserError, raise_all
from ra_hmd.models.head import HeadConfig

STAGE = "sft-classifier"

# Host features that build their own optimizer or loss: our parameter groups and our loss could not hold.
_FOREIGN = ("use_galore", "use_apollo", "use_badam", "use_muon", "use_adam_mini", "loraplus_lr_ratio", "use_dft_loss")
_FOREIGN += ("use_asft_loss", "use_eaft_loss", "use_mca", "use_hyper_parallel", "compute_accuracy")


@dataclass
class ClassifierFinetuningArguments(FinetuningArguments):
    """LLaMA-Factory's fine-tuning arguments plus ours. Names and defaults are those of the official RA-HMD files."""

    stage: Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "sft-classifier"] = field(
        default="sft",
        metadata={"help": "Which stage will be performed in training."},
    )
    loss_ratio: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "sft-classifier: weights r0, r1 of the loss r0 * L_LM + r1 * L_BCE."},
    )
    classifier_lr: float = field(
        default=1e-4,
        metadata={"help": "sft-classifier: learning rate of the head (the adapter has `learning_rate`)."},
    )
    num_layers: int = field(
        default=2,
        metadata={"help": "sft-classifier: linear layers of the head; all but the last are hidden blocks."},
    )
    proj_dim: int = field(
        default=1024,
        metadata={"help": "sft-classifier: width of the head's hidden blocks, and of the retrieval embedding."},
    )
    output_dim: int = field(
        default=1,
        metadata={"help": "sft-classifier: logits of the head; 1 is binary."},
    )
    input_dropout: float = field(
        default=0.0,
        metadata={"help": "sft-classifier: dropout on the head's input."},
    )
    dropout: list[float] | None = field(
        default=None,
        metadata={"help": "sft-classifier: dropout after each hidden block of the head, e.g. [0.2, 0.4]; unset: none."},
    )
    embed_mode: Literal["last_token", "pool"] = field(
        default="last_token",
        metadata={"help": "sft-classifier: the head reads the last prompt token, or the mean over the prompt."},
    )
    embed_layer: Literal["last", "penultimate"] = field(
        default="last",
        metadata={"help": "sft-classifier: layer that the head reads; `penultimate` keeps every layer in memory."},
    )
    positive_answer: str = field(
        default="Yes",
        metadata={"help": "sft-classifier: first word of the answer of class 1."},
    )
    negative_answer: str = field(
        default="No",
        metadata={"help": "sft-classifier: first word of the answer of class 0."},
    )
    prompt_template: str = field(
        default=OFFICIAL_PROMPT,
        metadata={"help": "sft-classifier: the question of the data, with <image> once and {text} for the caption."},
    )
    overlong_caption: Literal["shorten", "error"] = field(
        default="shorten",
        metadata={"help": "sft-classifier: a caption that does not fit in cutoff_len is shortened, or refused."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage != STAGE:
            return
        problems = coerce_fields(self, OUR_FIELDS, "YAML")
        raise_all(problems or self._cross_check(), f"Keys of stage {STAGE} that do not fit")

    def _cross_check(self) -> list[str]:
        problems = [f"`{name}` cannot be combined with stage {STAGE}: remove it." for name in _FOREIGN
                    if getattr(self, name, None)]  # fmt: skip
        if len(self.loss_ratio) != 2 or min(self.loss_ratio, default=-1) < 0 or sum(self.loss_ratio) == 0:
            problems.append(f"`loss_ratio` is {self.loss_ratio}; give two weights >= 0, not both 0: [r0, r1].")
        if self.classifier_lr <= 0:
            problems.append(f"`classifier_lr` is {self.classifier_lr}; it must be above 0.")
        if self.output_dim != 1:
            problems.append(f"`output_dim` is {self.output_dim}; this version trains the binary head (1).")
        for build in (lambda: self.head_config(1), lambda: self.answers, lambda: self.prompt):
            try:
                build()
            except UserError as error:
                problems.append(str(error))
        return problems

    def head_config(self, hidden_size: int) -> HeadConfig:
        """Shape of the head on an LMM of the given hidden size."""
        return HeadConfig(
            hidden_size,
            self.num_layers,
            self.proj_dim,
            self.output_dim,
            self.input_dropout,
            tuple(self.dropout or ()),
        )

    @property
    def answers(self) -> Answers:
        """First words of the answers, in class order."""
        return Answers((self.negative_answer, self.positive_answer))

    @property
    def prompt(self) -> PromptTemplate:
        """The question of the data."""
        return PromptTemplate(self.prompt_template)


OUR_FIELDS = tuple(
    name
    for name in ClassifierFinetuningArguments.__dataclass_fields__
    if name not in FinetuningArguments.__dataclass_fields__
)


def normalise(args: dict[str, Any]) -> list[str]:
    """Mend, in place, what stock LLaMA-Factory 0.9.5 would silently misread in an official RA-HMD file.

    Returns:
        One sentence for each change.

    Raises:
        UserError: a quantisation method that no one knows.
    """
    notes = []
    method = args.get("quantization_method")
    if method == "bitsandbytes":
        args["quantization_method"] = "bnb"
        notes.append("`quantization_method: bitsandbytes` was read as `bnb` (the host would train unquantised).")
    elif method is not None and method not in ("bnb", "gptq", "awq", "aqlm", "quanto", "eetq", "hqq", "mxfp4", "fp8"):
        raise UserError(f"`quantization_method: {method}` is unknown to LLaMA-Factory; use `bnb` with 4 or 8 bits.")
    for key in ("classifier_lr", "learning_rate"):
        if isinstance(args.get(key), str):
            args[key] = float(args[key])
            notes.append(f"`{key}` was text to YAML ('1e-4' has no dot) and was read as {args[key]}.")
    return notes
