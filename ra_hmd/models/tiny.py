"""CPU-sized LMMs, built from their config classes: for the demo and for tests of the real training engines.

Weights are random but follow from the seed. The processor classes, the special tokens and the chat format are the
family's own, so that such a folder goes wherever a published checkpoint goes; only the sizes differ.
"""

from pathlib import Path

from ra_hmd.core.artifacts import new_folder
from ra_hmd.core.errors import UserError
from ra_hmd.models.families import named_family, tokenizer_of

EMBEDDER_FAMILY = "qwen3_vl_embedding"
"""Name of the tiny LMM embedder on the command line."""


def make_tiny_lmm(
    family: str, output: Path, seed: int = 0, *, hidden_size: int = 128, num_layers: int = 4, tied: bool = False
) -> Path:
    """Make a folder with a randomly initialised model of `family`, its tokenizer and its processor.

    It opens with `AutoProcessor`, `AutoTokenizer` and `AutoModelForImageTextToText`, and trains in stock LLaMA-Factory
    with the templates of its `Family`.

    Args:
        family: Name of a registered family.
        output: Folder to make; it is complete or absent.
        seed: Decides the weights, to the byte.
        hidden_size: H, a multiple of 64 (attention heads of 32, two for each key-value head).
        num_layers: Layers of the language model, 2 or more.
        tied: Whether the LM head shares the weights of the input embeddings, so that the file has none of its own.

    Returns:
        `output`.

    Raises:
        UserError: unknown family, sizes that do not fit, `output` exists and is not empty.
    """
    entry = named_family(family)
    if hidden_size < 64 or hidden_size % 64 or num_layers < 2:
        raise UserError(f"hidden_size {hidden_size} must be a multiple of 64, and num_layers {num_layers} at least 2.")
    import torch
    from transformers import AutoModelForImageTextToText

    with new_folder(output) as folder:
        processor = entry.tiny_processor()
        processor.save_pretrained(folder)
        config = entry.tiny_config(tokenizer_of(processor), hidden_size, num_layers)
        config.tie_word_embeddings = config.tie_word_embeddings or tied
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
            entry.finish_tiny(model)
        model.generation_config.update(eos_token_id=config.get_text_config().eos_token_id, do_sample=False)
        model.save_pretrained(folder)
    return Path(output)


def make_tiny_embedder(output: Path, seed: int = 0) -> Path:
    """Make a folder with a randomly initialised LMM embedder, like Qwen3-VL-Embedding-2B: a Qwen3-VL whose file has no
    LM head.

    Args:
        output: Folder to make; it is complete or absent.
        seed: Decides the weights, to the byte.

    Returns:
        `output`.

    Raises:
        UserError: `output` exists and is not empty.
    """
    return make_tiny_lmm("qwen3_vl", output, seed, tied=True)
