"""The checks of gpu_check.py and what they share. Each returns what it measured, and raises where it fails."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """How large what is measured is."""

    hidden: int
    layers: int
    batch: int
    steps: int
    bank: int
    queries: int
    width: int
    memes: int


SIZES = {
    "cuda": Sizes(hidden=2048, layers=12, batch=16, steps=10, bank=100_000, queries=2_000, width=1024, memes=800),
    "cpu": Sizes(hidden=64, layers=2, batch=2, steps=2, bank=500, queries=20, width=16, memes=16),
}


class Unfit(Exception):
    """A check cannot run here; the message says why."""


class Bench:
    """What the checks share: the device, the sizes, a model, a batch, a clock."""

    def __init__(self, device: str, folder: Path) -> None:
        import torch

        self.device, self.folder, self.sizes = torch.device(device), folder, SIZES[device]

    @property
    def model_folder(self) -> Path:
        """A random Qwen2-VL of the benchmark's size."""
        from ra_hmd.models.tiny import make_tiny_lmm

        folder = self.folder / "model"
        if not folder.exists():
            make_tiny_lmm("qwen2_vl", folder, hidden_size=self.sizes.hidden, num_layers=self.sizes.layers)
        return folder

    @property
    def data_folder(self) -> Path:
        """Drawn memes with their LLaMA-Factory files."""
        from ra_hmd.data.synthetic.confounders import make_confounders

        folder = self.folder / "data"
        if not folder.exists():
            make_confounders(folder, size=96 if self.device.type == "cpu" else 224)
        return folder

    def model(self, dtype: str = "bfloat16", **options: Any) -> Any:
        """The model on the device; `options` as for `from_pretrained`."""
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(self.model_folder, dtype=dtype, **options)
        return model if "quantization_config" in options else model.to(self.device)

    def batch(self) -> dict[str, Any]:
        """Memes of different lengths with labels on their last tokens."""
        import numpy as np
        from PIL import Image
        from transformers import AutoProcessor

        rng, processor = np.random.default_rng(0), AutoProcessor.from_pretrained(self.model_folder)
        texts, images = [], []
        for row in range(self.sizes.batch):
            content = [{"type": "image"}, {"type": "text", "text": "what is shown here" + " and here" * (row % 5)}]
            message = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
            images.append(Image.fromarray(rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)))
        batch = dict(processor(text=texts, images=images, return_tensors="pt", padding=True))
        labels = batch["input_ids"].clone()
        labels[:, :-4] = -100
        batch["labels"] = labels.masked_fill(batch["attention_mask"] == 0, -100)
        return {name: value.to(self.device) for name, value in batch.items()}

    def train(self, model: Any, batch: dict[str, Any], autocast: bool = False) -> dict[str, float]:
        """Mean seconds of a forward and backward pass, the loss, and the largest memory on the device."""
        import torch

        def step() -> Any:
            model.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
                loss = model(**batch).loss
            loss.backward()
            return loss

        model.train()
        loss = step()
        self.reset()
        seconds = self.timed(lambda: [step() for _ in range(self.sizes.steps)]) / self.sizes.steps
        return {"loss": float(loss), "step_s": seconds, "peak_mib": self.peak()}

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds that `run` takes, the device's work included."""
        self.wait()
        begin = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Until the device has done what it was told."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def reset(self) -> None:
        """Begin a new measurement of memory."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """MiB: the largest memory on the GPU since `reset`; on a CPU that of the process."""
        import torch

        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / _MIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def need_gpu(self) -> None:
        """Raise `Unfit` on a CPU."""
        if self.device.type == "cpu":
            raise Unfit("needs a GPU")

    def launch(self, name: str, **changes: Any) -> dict[str, float]:
        """Train a few steps of stage `sft-classifier` by stock `llamafactory-cli`, on one rank of torchrun."""
        import yaml

        gpu = self.device.type == "cuda"
        config = {
            "model_name_or_path": str(self.model_folder), "template": "qwen2_vl", "stage": "sft-classifier",
            "do_train": True, "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16, "bf16": gpu,
            "dataset_dir": str(self.data_folder), "dataset": "confounders_a", "cutoff_len": 256,
            "max_samples": self.sizes.steps * self.sizes.batch, "overwrite_cache": True, "learning_rate": 1.0e-4,
            "output_dir": str(self.folder / name), "per_device_train_batch_size": self.sizes.batch,
            "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 1,
            "ddp_timeout": 180_000_000,
        } | changes  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = Path(sys.executable).with_name("llamafactory-cli")
        env = os.environ | {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "1", "LLAMAFACTORY_VERBOSITY": "WARN"}
        env["PATH"] = f"{command.parent}{os.pathsep}{env['PATH']}"
        begin = time.perf_counter()
        done = subprocess.run([command, "train", path], env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-15:]))
        log = json.loads((self.folder / name / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses = [row["loss"] for row in log if "loss" in row]
        if not losses or not all(0 < loss < 1e3 for loss in losses):
            raise RuntimeError(f"losses {losses}")
        return {"first_loss": losses[0], "last_loss": losses[-1], "wall_s": time.perf_counter() - begin}


def compare(found: float, wanted: float, most: float, what: str) -> None:
    """Raise where two losses differ by more than the share `most`."""
    if not abs(found - wanted) <= most * abs(wanted):
        raise RuntimeError(f"{what}: {found:.5f}, {wanted:.5f} without it")


def against(bench: Bench, name: str, measured: Callable[[], dict[str, float]], most: float) -> dict[str, float]:
    """A training step as `measured` makes it, beside one in bf16 with torch's own attention and kernels."""
    plain = bench.train(bench.model(attn_implementation="sdpa"), bench.batch())
    other = measured()
    compare(other["loss"], plain["loss"], most, name)
    return {
        **{f"plain_{key}": value for key, value in plain.items()},
        **other,
        "speed": plain["step_s"] / other["step_s"],
    }


def flash_attention_2(bench: Bench) -> dict[str, float]:
    """A training step with FlashAttention 2, beside torch's attention."""
    bench.need_gpu()
    try:
        version("flash-attn")
    except ImportError as error:
        raise Unfit("flash-attn is not installed") from error
    model = {"attn_implementation": "flash_attention_2"}
    return against(bench, "FlashAttention 2", lambda: bench.train(bench.model(**model), bench.batch()), 0.02)


def liger(bench: Bench) -> dict[str, float]:
    """A training step with Liger's kernels, its fused loss among them, beside torch's."""
    bench.need_gpu()
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2_vl

    def patched() -> dict[str, float]:
        apply_liger_kernel_to_qwen2_vl()
        return bench.train(bench.model(attn_implementation="sdpa"), bench.batch())

    return against(bench, "Liger", patched, 0.02)


def bf16(bench: Bench) -> dict[str, float]:
    """A training step of float32 weights under bf16 autocast, beside float32."""
    batch = bench.batch()
    plain = bench.train(bench.model("float32"), batch)
    half = bench.train(bench.model("float32"), batch, autocast=True)
    compare(half["loss"], plain["loss"], 0.02, "bf16")
    return {
        **{f"plain_{key}": value for key, value in plain.items()},
        **half,
        "speed": plain["step_s"] / half["step_s"],
    }


def nf4(bench: Bench) -> dict[str, float]:
    """A forward pass over NF4 weights with double quantisation, beside bf16."""
    import torch
    from transformers import BitsAndBytesConfig

    batch = bench.batch()
    with torch.inference_mode():
        bench.reset()
        plain, plain_mib = float(bench.model()(**batch).loss), bench.peak()
        quantized = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
        )  # fmt: skip
        model = bench.model(quantization_config=quantized, device_map={"": bench.device})
        bench.reset()
        loss = float(model(**batch).loss)
    compare(loss, plain, 0.1, "NF4")
    return {
        "loss": loss,
        "plain_loss": plain,
        "weights_mib": model.get_memory_footprint() / _MIB,
        "plain_mib": plain_mib,
    }


def stage1(bench: Bench) -> dict[str, float]:
    """Stage 1 by stock LLaMA-Factory: QLoRA, and on a GPU FlashAttention 2, Liger and bf16."""
    gpu = bench.device.type == "cuda"
    kernels = {"flash_attn": "fa2", "enable_liger_kernel": True} if gpu else {}
    return bench.launch("stage1", quantization_bit=4, quantization_method="bnb", **kernels)


def deepspeed(bench: Bench) -> dict[str, float]:
    """Stage 1 under ZeRO-2 and ZeRO-3 on one rank."""
    found = {}
    for name in ("zero2", "zero3"):
        run = bench.launch(name, deepspeed=str(ROOT / "configs" / "deepspeed" / f"{name}.json"))
        found |= {f"{name}_{key}": value for key, value in run.items()}
    return found


def faiss_gpu(bench: Bench) -> dict[str, float]:
    """Exhaustive and inverted-list search on the GPU, beside the CPU: the same rows, queries per second."""
    import faiss
    import numpy as np

    from ra_hmd.retrieval.index import build_index

    if bench.device.type == "cuda" and not faiss.get_num_gpus():
        raise Unfit("this FAISS sees no GPU")
    rng, sizes = np.random.default_rng(0), bench.sizes
    rows = rng.standard_normal((sizes.bank, sizes.width), dtype=np.float32)
    queries = rows[: sizes.queries] + 0.1 * rng.standard_normal((sizes.queries, sizes.width), dtype=np.float32)
    found: dict[str, float] = {}
    for kind in ("flat", "ivf"):
        index = build_index(rows, kind=kind)
        near, _ = index.search(queries, 20)  # copies the index to the GPU
        seconds = bench.timed(lambda index=index: index.search(queries, 20))
        begin = time.perf_counter()
        _, wanted = index._search_cpu(queries, 20, None, index._width)
        found[f"{kind}_queries_per_s"] = len(queries) / seconds
        found[f"{kind}_speed"] = (time.perf_counter() - begin) / seconds
        found[f"{kind}_same_rows"] = float((near == wanted).mean())
        if found[f"{kind}_same_rows"] < 0.99:
            raise RuntimeError(f"{kind}: only {found[f'{kind}_same_rows']:.3f} of the neighbours are those of the CPU")
    bench.need_gpu()  # what a CPU found was searched there
    return found


def extraction(bench: Bench) -> dict[str, float]:
    """Memes per second of `ra-hmd extract`, beside bare forward passes over the same memes, already encoded."""
    from itertools import islice

    from ra_hmd.data.meme_dataset import open_data
    from ra_hmd.features.extract_lmm import extract_hidden_states
    from ra_hmd.models.checkpoint import open_backbone
    from ra_hmd.models.meme_model import MemeModel

    run = open_backbone(str(bench.model_folder))
    memes = list(islice(open_data(bench.data_folder / "a").memes("train"), bench.sizes.memes))
    dtype = "bfloat16" if bench.device.type == "cuda" else "auto"
    size = bench.sizes.batch
    found = _bare_passes(bench, MemeModel(run, bench.device, dtype), memes)
    seconds = []
    for count in (len(memes) // 4, len(memes)):  # their difference leaves loading the model and the processes out
        folder = bench.folder / f"features_{count}"
        chosen = memes[:count]
        seconds.append(
            bench.timed(
                lambda chosen=chosen, folder=folder: extract_hidden_states(
                    run, chosen, folder, batch_size=size, dtype=dtype
                )
            )
        )
    rate = (len(memes) - len(memes) // 4) / max(seconds[1] - seconds[0], 1e-3)
    return found | {"memes_per_s": rate, "ratio": found["bare_memes_per_s"] / rate, "all_s": seconds[1]}


def _bare_passes(bench: Bench, model: Any, memes: list[Any]) -> dict[str, float]:
    """Memes per second of nothing but forward passes over batches that are made already."""
    from ra_hmd.data.images import load_image

    size = bench.sizes.batch
    rows = [model.encode(meme.text, load_image(meme.image)) for meme in memes]
    batches = [model.collate(rows[start : start + size]) for start in range(0, len(rows), size)]
    model.score(batches[0])
    bench.reset()
    seconds = bench.timed(lambda: [model.score(batch) for batch in batches])
    return {"bare_memes_per_s": len(memes) / seconds, "peak_mib": bench.peak()}


def stage2(bench: Bench) -> dict[str, float]:
    """An epoch of Stage 2, beside the matrix products that it cannot do without."""
    sys.path.insert(0, str(ROOT / "scripts" / "bench"))
    import torch
    from stage2_epoch import WIDTH, bare_products, features

    from ra_hmd.models.head import HeadConfig, MemeHead
    from stage2.arguments import Stage2Arguments
    from stage2.trainer import Trainer

    rows, hidden = (8500, 3584) if bench.device.type == "cuda" else (200, 32)
    train, dev = features(rows, hidden, 0), features(rows // 6, hidden, 1)
    folders = {name: bench.folder / name for name in ("train", "dev", "output_dir")}  # nothing is read or written
    trainer = Trainer(
        Stage2Arguments(**folders), MemeHead(HeadConfig(input_dim=hidden, proj_dim=WIDTH)), train, dev, bench.device
    )

    def epoch(number: int) -> None:
        trainer.close_epoch(number, trainer.train_epoch(number, lambda: None))

    def products() -> None:
        with torch.device(bench.device):
            bare_products(trainer.hidden, trainer.dev_hidden, trainer.labels)

    epoch(1)
    products()
    bench.reset()
    seconds, bare = bench.timed(lambda: epoch(2)), bench.timed(products)
    return {"epoch_s": seconds, "bare_products_s": bare, "ratio": seconds / bare, "peak_mib": bench.peak()}


CHECKS: dict[str, tuple[Callable[[Bench], dict[str, float]], int]] = {
    "flash_attention_2": (flash_attention_2, 60),
    "liger": (liger, 90),
    "bf16": (bf16, 60),
    "nf4": (nf4, 60),
    "faiss_gpu": (faiss_gpu, 90),
    "stage2": (stage2, 90),
    "extraction": (extraction, 90),
    "stage1": (stage1, 120),
    "deepspeed": (deepspeed, 180),
}
"""The checks and the seconds that each may take."""
