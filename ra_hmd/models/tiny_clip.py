"""CPU-sized image–text encoders, built from their config classes: for tests of the real engines and for trials.

Weights are random but follow from the seed. Model, tokenizer and image processor are of the family's own classes, with
its special tokens, lengths and pooling, so that such a folder goes wherever a published checkpoint goes. Vocabulary and
sizes differ: the tokenizers learn their pieces from the sentences of the synthetic memes.
"""

import io
import string
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from ra_hmd.core.artifacts import new_folder
from ra_hmd.core.errors import UserError
from ra_hmd.data.synthetic.confounders import DOMAINS, caption_corpus, descriptions

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase

EncoderFamily = Literal["clip", "altclip", "align", "siglip", "siglip2"]

_IMAGE = 64  # pixels of each side of what the vision tower sees
_PATCH = 8
_FLEXIBLE_PATCH, _FLEXIBLE_PATCHES = 16, 49  # SigLIP 2's processor cuts patches of 16 pixels; up to 7 x 7 of them
_TEXT, _VISION = 64, 128  # widths
_PIECES = 400  # learned pieces of a vocabulary, at most


def make_tiny_encoder(family: EncoderFamily, output: Path, seed: int = 0) -> Path:
    """Make a folder with a randomly initialised encoder of `family`, its tokenizer and its image processor.

    It opens with `AutoModel`, `AutoTokenizer`, `AutoImageProcessor` and `AutoProcessor`. `siglip2` is the kind that
    keeps an image's shape (NaFlex); SigLIP 2's checkpoints of a fixed resolution are models of family `siglip`.

    Args:
        family: Which architecture.
        output: Folder to make; it is complete or absent.
        seed: Decides the weights, to the byte.

    Returns:
        `output`.

    Raises:
        UserError: unknown family, `output` exists and is not empty.
    """
    if family not in get_args(EncoderFamily):
        raise UserError(f"--family {family!r} is not known; give one of {', '.join(get_args(EncoderFamily))}.")
    import torch
    from transformers import AutoModel

    with new_folder(output) as folder:
        tokenizer = _tokenizer(family)
        tokenizer.save_pretrained(folder)
        _image_processor(family).save_pretrained(folder)
        config = _config(family, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModel.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder)
    return Path(output)


def _corpus() -> list[str]:
    """Training text of the tokenizers: captions and descriptions of the synthetic memes, every printable character."""
    subjects = [subject for domain in DOMAINS for pair in domain.pairs for subject in pair]
    bodies = [body for domain in DOMAINS for body in domain.bodies]
    sentences = [text for name in subjects for body in bodies for text in descriptions(name, body, name, "")]
    characters = " ".join(sorted(set(string.printable) - set(string.whitespace)))
    return (caption_corpus() + sentences + [characters]) * 4  # SentencePiece drops what occurs rarely


def _tokenizer(family: EncoderFamily) -> "PreTrainedTokenizerBase":
    make = {
        "clip": _clip_tokenizer,
        "altclip": _xlm_roberta_tokenizer,
        "align": _bert_tokenizer,
        "siglip": _siglip_tokenizer,
        "siglip2": _siglip2_tokenizer,
    }
    return make[family]()


def _clip_tokenizer() -> "PreTrainedTokenizerBase":
    """Byte-level BPE; any byte has its token, in the middle and at the end of a word."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    plain = CLIPTokenizer().backend_tokenizer
    end = plain.model.end_of_word_suffix
    words = _words(plain.normalizer, plain.pre_tokenizer)
    merges = _learn_merges(Counter({(*word[:-1], word[-1] + end): count for word, count in words.items()}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *[letter + end for letter in alphabet], *map("".join, merges)]
    vocabulary = _numbered([*pieces, "<|startoftext|>", "<|endoftext|>"])
    pairs = cast(list[Any], merges)  # annotated as strings there
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def _siglip2_tokenizer() -> "PreTrainedTokenizerBase":
    """BPE of Gemma's kind: spaces are letters, what is unknown is spelled in bytes, `<eos>` ends a sentence."""
    from tokenizers import pre_tokenizers, processors
    from transformers import Siglip2Tokenizer

    normalizer = Siglip2Tokenizer().backend_tokenizer.normalizer
    words = _words(normalizer, pre_tokenizers.Split("▁", "merged_with_next"))  # no piece reaches over a space
    merges = _learn_merges(Counter({tuple(word): count for word, count in words.items()}))
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += [*sorted({letter for word in words for letter in word}), *map("".join, merges)]
    pairs = cast(list[Any], merges)  # annotated as strings there
    tokenizer = Siglip2Tokenizer(vocab=_numbered(pieces), merges=pairs, model_max_length=64, padding_side="right")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


def _bert_tokenizer() -> "PreTrainedTokenizerBase":
    """WordPiece in lower case, `[CLS] … [SEP]`: the corpus's words and, for others, their letters."""
    from transformers import BertTokenizer

    plain = BertTokenizer(do_lower_case=True).backend_tokenizer
    words = _words(plain.normalizer, plain.pre_tokenizer)
    letters = {letter for word in words for letter in word}
    pieces = [*letters, *[f"##{letter}" for letter in letters], *words]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab=_numbered([*special, *sorted(set(pieces))]), model_max_length=64)


def _words(normalizer: Any, pre_tokenizer: Any) -> Counter[str]:
    """Count the words of the corpus, as a tokenizer with these two parts sees it."""
    sentences = map(normalizer.normalize_str, _corpus())
    return Counter(word for text in sentences for word, _ in pre_tokenizer.pre_tokenize_str(text))


def _learn_merges(words: Counter[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Byte-pair encoding: join the most frequent pair of neighbours, `_PIECES` times or until words are whole.

    `tokenizers` has a trainer, but with letters that end a word it breaks ties otherwise in each process.
    """
    merges: list[tuple[str, str]] = []
    while len(merges) < _PIECES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = Counter({_joined(word, best): count for word, count in words.items()})
    return merges


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`word` with each occurrence of `pair` made one piece, from left to right."""
    pieces: list[str] = []
    for piece in word:
        if pieces and (pieces[-1], piece) == pair:
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return tuple(pieces)


def _numbered(pieces: list[str]) -> dict[str, int]:
    """Piece → id. Two merges may end in the same piece: it has one id."""
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def _xlm_roberta_tokenizer() -> "PreTrainedTokenizerBase":
    """SentencePiece's unigram model with XLM-R's special tokens at XLM-R's places: `<s> … </s>`, padding 1."""
    import sentencepiece
    from transformers import XLMRobertaTokenizer

    model = sentencepiece.SentencePieceProcessor(model_proto=_learn_unigram())
    learned = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.vocab_size()) if not model.is_control(i)]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [*special, *[pair for pair in learned if pair[0] != "<unk>"], ("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=pieces, model_max_length=512)


def _siglip_tokenizer() -> "PreTrainedTokenizerBase":
    """A SentencePiece file; `</s>` ends a sentence and pads it."""
    import tempfile

    from transformers import SiglipTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        path.write_bytes(_learn_unigram())
        return SiglipTokenizer(str(path), model_max_length=64, model_input_names=["input_ids"])


def _learn_unigram() -> bytes:
    import sentencepiece

    # A piece must occur in two words: a full stop behind each makes a second one, so that whole words become pieces.
    stopped = [sentence.replace(" ", ". ") + "." for sentence in _corpus()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*_corpus(), *stopped]),
        model_writer=model,
        vocab_size=_PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _image_processor(family: EncoderFamily) -> "BaseImageProcessor":
    import transformers

    square = {"height": _IMAGE, "width": _IMAGE}
    if family == "siglip":
        return transformers.SiglipImageProcessor(size=square)
    if family == "siglip2":
        return transformers.Siglip2ImageProcessor(patch_size=_FLEXIBLE_PATCH, max_num_patches=_FLEXIBLE_PATCHES)
    if family == "align":  # as published: values in [-1, 1], a border is cut off
        border = {"height": _IMAGE + 8, "width": _IMAGE + 8}
        return transformers.EfficientNetImageProcessor(
            size=border,
            crop_size=square,
            do_center_crop=True,
            do_normalize=False,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            include_top=False,
            resample=2,
        )
    return transformers.CLIPImageProcessor(size={"shortest_edge": _IMAGE}, crop_size=square)


def _config(family: EncoderFamily, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedConfig":
    import transformers

    # A decorator that type checkers do not see through makes their constructors.
    configs: dict[EncoderFamily, Callable[..., PreTrainedConfig]] = {
        "clip": transformers.CLIPConfig,
        "altclip": transformers.AltCLIPConfig,
        "align": transformers.AlignConfig,
        "siglip": transformers.SiglipConfig,
        "siglip2": transformers.Siglip2Config,
    }
    make = configs[family]
    names = ("pad", "bos", "eos")
    text: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    text |= {"vocab_size": len(tokenizer), "hidden_size": _TEXT, "intermediate_size": 2 * _TEXT}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    vision: dict[str, Any] = {"hidden_size": _VISION, "intermediate_size": 2 * _VISION, "num_hidden_layers": 4}
    vision |= {"num_attention_heads": 4, "image_size": _IMAGE, "patch_size": _PATCH}
    if family == "clip":
        text |= {"max_position_embeddings": 77, "projection_dim": _TEXT}
        vision["projection_dim"] = _TEXT
        return make(text_config=text, vision_config=vision, projection_dim=_TEXT)
    if family == "altclip":
        # The published 0.02 is made for a width of 1,024: at this width a text tower would hardly begin to learn.
        text |= {"max_position_embeddings": 514, "project_dim": _TEXT, "initializer_factor": 0.1}
        vision["projection_dim"] = _TEXT
        return make(text_config=text, vision_config=vision, projection_dim=_TEXT)
    if family == "align":
        return make(text_config=text, vision_config=_efficientnet(), projection_dim=_VISION)
    text |= {"max_position_embeddings": 64, "hidden_size": _VISION, "intermediate_size": 2 * _VISION}
    if family == "siglip":
        return make(text_config=text, vision_config=vision)
    del vision["image_size"]
    vision |= {"patch_size": _FLEXIBLE_PATCH, "num_patches": _FLEXIBLE_PATCHES}
    return make(text_config=text, vision_config=vision)


def _efficientnet() -> dict[str, Any]:
    """EfficientNet's blocks, fewer and narrower. Image features are as wide as the last block's output."""
    return {
        "image_size": _IMAGE,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "kernel_sizes": [3, 3, 5, 3],
        "in_channels": [32, 16, 32, 64],
        "out_channels": [16, 32, 64, _VISION],
        "strides": [1, 2, 2, 1],
        "num_block_repeats": [1, 1, 2, 1],
        "expand_ratios": [1, 4, 4, 4],
        "hidden_dim": _VISION,
        "initializer_range": 0.25,  # with the default 0.02 an untrained tower's features vanish
        # The share of the newest batch in the running statistics; the default 0.99 would all but forget the others.
        "batch_norm_momentum": 0.1,
    }
