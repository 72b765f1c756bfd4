"""Our training step against stock SFT's: time, peak memory and LM loss, both through LLaMA-Factory, in one run.

A Qwen2-VL of hidden size 512 with 6 layers and the full vocabulary of 151,936 is LoRA-tuned for a few steps of
8 x 400 tokens, once with stock `stage: sft`, once with `stage: sft-classifier`, each in a process of its own.

    python scripts/bench/stage1_step.py [--steps 6] [--output result.json]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, LAYERS, VOCABULARY, BATCH, TOKENS = 512, 6, 151_936, 8, 400
WARM_UP = 2


def build_model(folder: Path) -> None:
    """A random model of the benchmark's size, with the tiny model's tokenizer and processor."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from ra_hmd.models.tiny import make_tiny_lmm

    make_tiny_lmm("qwen2_vl", folder, hidden_size=HIDDEN, num_layers=LAYERS)
    config = AutoConfig.from_pretrained(folder)
    config.text_config.vocab_size = VOCABULARY
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


def build_data(folder: Path, model: Path, rows: int) -> None:
    """Drawn memes whose captions are made so long that every sample has `TOKENS` tokens."""
    from transformers import AutoTokenizer

    from ra_hmd.data.synthetic.confounders import make_confounders

    make_confounders(folder, size=max(rows, 16))
    tokenizer = AutoTokenizer.from_pretrained(model)
    word = next(word for word in (" cat", " dog", " a", " the") if len(tokenizer.encode(word)) == 1)
    path = folder / "confounders_a.json"
    records = json.loads(path.read_text())[:rows]
    for record in records:
        question, answer = record["messages"]
        template_tokens = 16 + 24  # image tokens of a drawn meme, and about what the chat template adds
        used = len(tokenizer.encode(question["content"] + answer["content"])) + template_tokens
        before, quote, after = question["content"].rpartition('" written')
        question["content"] = before + word * (TOKENS - used) + quote + after
    path.write_text(json.dumps(records))


def child(arguments: dict[str, Any]) -> None:
    """Train, and print step times, peak memory and the first step's LM loss as one JSON line."""
    from llamafactory.train import tuner
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def __init__(self) -> None:
            self.starts: list[float] = []
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.starts.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.starts[-1])

    timer = Timer()
    tuner.run_exp(arguments, callbacks=[timer])
    history = json.loads((Path(arguments["output_dir"]) / "trainer_state.json").read_text())["log_history"]
    first = history[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = {"seconds": timer.seconds[WARM_UP:], "peak_bytes": peak, "lm_loss": first.get("lm_loss", first["loss"])}
    print("RESULT " + json.dumps(result), flush=True)


def measure(arguments: dict[str, Any]) -> dict[str, Any]:
    """Run `child` in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    """Measure both stages and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder / "model")
        build_data(folder / "data", folder / "model", BATCH * options.steps)
        common = {
            "model_name_or_path": str(folder / "model"),
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "dataset": "confounders_a",
            "dataset_dir": str(folder / "data"),
            "template": "qwen2_vl",
            "cutoff_len": 1024,
            "per_device_train_batch_size": BATCH,
            "max_steps": options.steps,
            "disable_shuffling": True,
            "learning_rate": 1e-4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "overwrite_cache": True,
        }
        results = {
            stage: measure(common | {"stage": stage, "output_dir": str(folder / stage)})
            for stage in ("sft", "sft-classifier")
        }
    stock, ours = results["sft"], results["sft-classifier"]
    summary = {
        "stock_step_seconds": statistics.median(stock["seconds"]),
        "our_step_seconds": statistics.median(ours["seconds"]),
        "times_faster": statistics.median(stock["seconds"]) / statistics.median(ours["seconds"]),
        "stock_peak_gib": stock["peak_bytes"] / 2**30,
        "our_peak_gib": ours["peak_bytes"] / 2**30,
        "peak_memory_ratio": ours["peak_bytes"] / stock["peak_bytes"],
        "stock_lm_loss": stock["lm_loss"],
        "our_lm_loss": ours["lm_loss"],
    }
    for key, value in summary.items():
        print(f"{key:20} {value:.4f}")
    if options.output:
        options.output.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
