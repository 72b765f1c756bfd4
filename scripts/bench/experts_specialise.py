"""Whether experts specialise: drawn memes of two domains with opposite rules, the domain known by the cluster id alone.

In domain 0 a meme is of class 1 when its caption is about the first subject of its pair (cat, not dog), in domain 1
when it is about the second. Nothing in a meme tells its domain: without the id no model is right more often than
half of the time. A tiny Qwen2-VL is trained on the CPU, with LoRA on its attention and low-rank matrices in the MLPs of
its language model:

- right: experts, ids are the domains.
- shuffled: experts, ids are drawn at random per meme, in training and in the test.
- lora: one LoRA of rank E·r instead of the experts.

Each meme of the test is scored in both domains, so that a model that ignores the id scores exactly 0.5. `other ids` is
the accuracy of the same experts with ids drawn at random in the test: what they learned follows the id.

I(domain; expert) is the mutual information of the domain and the expert that a token takes, in nats, from the mean
probabilities of the test memes of each domain, averaged over layers; ln 2 = 0.693 is the most it can be. I(id; expert)
has the ids that the arm was given in the place of the domains. The prior starts from a small `prior_scale`, so that
there is room for it to grow; experts start from 2.0 elsewhere.

    python scripts/bench/experts_specialise.py [--seeds 0 1 2] [--steps 400] [--prior-scale 0.5]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ra_hmd.models.experts.attach import Experts, attach_experts, is_router_parameter
from ra_hmd.models.experts.settings import ExpertSettings

ARMS = ("right", "shuffled", "lora")
DOMAINS = 2
BATCH = 32
RATES = (3e-3, 1e-3)
"""Learning rates of the low-rank matrices and of the routers."""
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@dataclass
class Result:
    """Figures of one arm and seed.

    Attributes:
        accuracy: On the test memes, each in both domains.
        accuracy_other_ids: The same experts, ids drawn at random in the test; None without experts.
        information_before: I(domain; expert) before training.
        information: I(domain; expert) after training.
        id_information_before: I(id; expert) before training.
        id_information: I(id; expert) after training.
        trained: Number of trained parameters.
        seconds: Time of training.
    """

    arm: str
    seed: int
    accuracy: float
    accuracy_other_ids: float | None
    information_before: float | None
    information: float | None
    id_information_before: float | None
    id_information: float | None
    trained: int
    seconds: float


@dataclass
class Memes:
    """What the language model reads of N memes, and whether the caption is about the first subject, [N].

    The vision tower and the embeddings are frozen, so what they give is computed once: `inputs_embeds` [N, T, H],
    `attention_mask` [N, T] and `position_ids` [N, 4, T].
    """

    inputs: dict[str, Tensor]
    first: Tensor


def draw(folder: Path, model: Path, size: int, seed: int) -> dict[str, Memes]:
    """Draw memes and encode those of the training and the test split."""
    from PIL import Image
    from transformers import AutoProcessor

    from ra_hmd.data.prompt import PromptTemplate
    from ra_hmd.data.synthetic.confounders import DOMAINS as DRAWN
    from ra_hmd.data.synthetic.confounders import make_confounders

    make_confounders(folder, size=size, seed=seed)
    first = {noun for pair in DRAWN[0].pairs for noun in DRAWN[0].nouns[pair[0]]}
    processor = AutoProcessor.from_pretrained(model)
    processor.tokenizer.padding_side = "left"
    splits = {}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / "a" / f"{split}.jsonl").read_text().splitlines()]
        texts = []
        for row in rows:
            question = PromptTemplate().render(row["text"]).removeprefix("<image>")
            turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
            texts.append(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False))
        images = [Image.open(folder / "a" / row["img"]).convert("RGB") for row in rows]
        batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
        about_first = torch.tensor([bool(first & set(row["text"].split())) for row in rows])
        splits[split] = Memes(embed(model, dict(batch)), about_first)
    return splits


@torch.no_grad()
def embed(folder: Path, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the language model of a tiny Qwen2-VL is called with."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    seen: dict[str, Any] = {}
    model.get_decoder().register_forward_pre_hook(lambda *call: seen.update(call[2]), with_kwargs=True)
    model(**batch, use_cache=False)
    positions = seen["position_ids"].movedim(0, 1)
    return {
        "inputs_embeds": seen["inputs_embeds"],
        "position_ids": positions,
        "attention_mask": batch["attention_mask"],
    }


class Learner:
    """A tiny Qwen2-VL with the matrices of an arm: LoRA on its attention, and experts or LoRA in its MLPs."""

    def __init__(self, folder: Path, arm: str, seed: int, settings: ExpertSettings) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForImageTextToText, AutoTokenizer

        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.answers = [tokenizer.encode(word)[0] for word in ("No", "Yes")]
        base = AutoModelForImageTextToText.from_pretrained(folder)
        wide = settings.rank * settings.num_experts
        ranks = {"rank_pattern": dict.fromkeys(MLP, wide), "alpha_pattern": dict.fromkeys(MLP, wide)}
        layers = "|".join(ATTENTION + (MLP if arm == "lora" else []))
        config = LoraConfig(
            r=8,
            lora_alpha=8,
            target_modules=rf".*language_model.*\.({layers})",
            lora_dropout=settings.dropout,
            **(ranks if arm == "lora" else {}),
        )
        self.model = get_peft_model(base, config)
        self.experts: Experts | None = None
        if arm != "lora":
            self.experts = attach_experts(self.model, settings, seed=seed, trainable=True)

    def groups(self) -> list[dict[str, Any]]:
        """Groups of the optimizer: routers have a rate of their own."""
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        return [
            {"params": [value for name, value in named if not is_router_parameter(name)], "lr": RATES[0]},
            {"params": [value for name, value in named if is_router_parameter(name)], "lr": RATES[1]},
        ]

    def scores(self, memes: Memes, rows: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, 2] of the answers No and Yes."""
        batch = {name: value[rows] for name, value in memes.inputs.items()}
        batch["position_ids"] = batch["position_ids"].movedim(1, 0)
        if self.experts is not None:
            self.experts.routing.set(ids, batch["attention_mask"])
        base = self.model.get_base_model()
        states = base.get_decoder()(**batch, use_cache=False).last_hidden_state
        return states[:, -1] @ base.lm_head.weight[self.answers].T

    @torch.no_grad()
    def test(self, memes: Memes, domains: Tensor, ids: Tensor) -> tuple[float, Tensor | None]:
        """Accuracy, and the mean probabilities of the experts [L, N, E]."""
        self.model.eval()
        right, routed = 0, []
        for rows in torch.arange(len(domains)).split(BATCH):
            memes_of = rows % len(memes.first)
            scores = self.scores(memes, memes_of, ids[rows])
            right += int((scores.argmax(1) == labels(memes.first[memes_of], domains[rows])).sum())
            if self.experts is not None:
                means = self.experts.routing.balance.means
                routed.append(torch.stack([means[layer] for layer in sorted(means)]))
        return right / len(domains), torch.cat(routed, dim=1) if routed else None


def labels(first: Tensor, domains: Tensor) -> Tensor:
    """Classes [B] of memes in their domains: the rules of the domains are opposite."""
    return (first.long() + domains) % 2


def information(routed: Tensor, groups: Tensor) -> float:
    """Mutual information of group and expert in nats, averaged over layers.

    Args:
        routed: [L, N, E], mean probabilities of the experts.
        groups: [N], domain or id of each meme.
    """
    conditional = torch.stack([routed[:, groups == group].mean(dim=1) for group in groups.unique()], dim=1).double()
    shares = torch.stack([(groups == group).double().mean() for group in groups.unique()])
    marginal = (shares[:, None] * conditional).sum(dim=1, keepdim=True)
    return float((shares[:, None] * torch.special.xlogy(conditional, conditional / marginal)).sum(dim=(1, 2)).mean())


def run(folder: Path, splits: dict[str, Memes], arm: str, seed: int, settings: ExpertSettings, steps: int) -> Result:
    """Train and test one arm."""
    train, test = splits["train"], splits["test"]
    drawn = torch.Generator().manual_seed(1000 + seed)
    domains = torch.randint(0, DOMAINS, (len(train.first),), generator=drawn)
    twice = torch.arange(DOMAINS).repeat_interleave(len(test.first))  # each test meme in both domains
    random_ids = torch.randint(0, DOMAINS, (len(train.first),), generator=drawn)
    random_test = torch.randint(0, DOMAINS, (len(twice),), generator=drawn)
    ids, test_ids = (random_ids, random_test) if arm == "shuffled" else (domains, twice)
    learner = Learner(folder, arm, seed, settings)
    _, before = learner.test(test, twice, test_ids)
    groups = learner.groups()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, list(RATES), total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for _ in range(steps):
        learner.model.train()
        rows = torch.randint(0, len(train.first), (BATCH,), generator=drawn)
        scores = learner.scores(train, rows, ids[rows])
        loss = F.cross_entropy(scores, labels(train.first[rows], domains[rows]))
        if learner.experts is not None:
            loss = loss + 0.05 * learner.experts.balance_loss("batch")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([one for group in groups for one in group["params"]], 1.0)
        optimizer.step()
        schedule.step()
        if learner.experts is not None:
            learner.experts.end_step(lambda total: total)
    seconds = time.perf_counter() - began
    accuracy, after = learner.test(test, twice, test_ids)
    return Result(
        arm,
        seed,
        accuracy,
        None if after is None else learner.test(test, twice, random_test)[0],
        *(None if routed is None else information(routed, twice) for routed in (before, after)),
        *(None if routed is None else information(routed, test_ids) for routed in (before, after)),
        sum(parameter.numel() for parameter in learner.model.parameters() if parameter.requires_grad),
        seconds,
    )


def specialise(
    seeds: Sequence[int], *, steps: int, size: int, arms: Sequence[str] = ARMS, **prior: Any
) -> list[Result]:
    """Results of the arms for each seed, which decides model, memes, domains and weights.

    Args:
        seeds: One run of each arm per seed.
        steps: Optimizer steps.
        size: Training memes.
        arms: Which arms.
        **prior: Settings of the prior.
    """
    from ra_hmd.models.tiny import make_tiny_lmm

    settings = ExpertSettings(num_experts=DOMAINS, rank=8, alpha=8, num_clusters=DOMAINS, **prior)
    results = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            model = make_tiny_lmm("qwen2_vl", Path(name) / "model", seed=seed, hidden_size=64, num_layers=2)
            splits = draw(Path(name) / "memes", model, size, seed)
            for arm in arms:
                results.append(run(model, splits, arm, seed, settings, steps))
                print(results[-1], flush=True)
    return results


def table(results: Sequence[Result]) -> str:
    """A line per arm: accuracy of each seed, and means over seeds."""
    columns = {
        "other ids": "accuracy_other_ids",
        "I(domain) before": "information_before",
        "after": "information",
        "I(id) before": "id_information_before",
        "after ": "id_information",
    }
    lines = [f"{'arm':10}{'accuracy by seed':24}" + "".join(f"{title:>18}" for title in columns)]
    for arm in ARMS:
        own = [result for result in results if result.arm == arm]
        if not own:
            continue
        cells = ""
        for name in columns.values():
            values = [getattr(result, name) for result in own]
            cells += f"{'–' if None in values else f'{mean(values):.4f}':>18}"
        lines.append(f"{arm:10}{' '.join(f'{result.accuracy:.3f}' for result in own):24}{cells}")
    return "\n".join(lines)


def main() -> None:
    """Run all arms and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=480, help="training memes; the test has a quarter of it")
    parser.add_argument("--prior-init", choices=["assign", "zero"], default="assign")
    parser.add_argument("--prior-scale", type=float, default=0.5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prior = {"prior_init": options.prior_init, "prior_scale": options.prior_scale}
    results = specialise(options.seeds, steps=options.steps, size=options.size, arms=options.arms, **prior)
    print(table(results))
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        rows = [asdict(result) for result in results]
        options.output.write_text(json.dumps({"settings": settings, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
