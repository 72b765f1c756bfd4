"""Zero-shot classification by an image–text encoder, as a head: sentences become the weights of a linear layer.

Shapes: C outputs, D width of the shared space.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from ra_hmd.core.artifacts import plain
from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.manifests import ZeroShotManifest
from ra_hmd.features.compatibility import check_output
from ra_hmd.models.clip_encoder import Encoder
from ra_hmd.models.head import MemeHead
from ra_hmd.training.linear_head import Modality, check_modality, linear_head, save_linear_head
from ra_hmd.training.zero_shot_prompts import Prompts


def zero_shot(
    encoder: Encoder,
    prompts: Prompts,
    output: str | Path,
    *,
    modality: Modality = "image",
    device: torch.device | str | None = None,
    command: str = "",
) -> Path:
    """Write a head that scores memes by their likeness to sentences; nothing is trained.

    With s the encoder's logit scale and t the mean of the unit vectors of an output's sentences, made a unit vector
    again, the logit of a meme whose image has the unit vector x is::

        binary, any of C:  s · ⟨x, t_positive − t_negative⟩        one of C:  s · ⟨x, t_c⟩

    Sigmoid and softmax of them are the probabilities that CLIP's own comparison of the image with the sentences
    gives. SigLIP's offset is the same for all sentences and cancels.

    Args:
        encoder: With `projected` features; its weights are loaded.
        prompts: The sentences.
        output: Folder of the head, for feature stores of `ra-hmd encode --features projected`.
        modality: Features that are compared with the sentences: the image, the caption, or `both`, half and half.
        device: Where the encoder runs; None: accelerate's.
        command: The command line, for the manifest.

    Returns:
        `output`.

    Raises:
        UserError: an encoder with other features, a sentence that is too long, or `output` holds something else.
    """
    output = Path(output)
    check_modality(modality)
    if encoder.settings.features != "projected":
        raise UserError(
            f"Zero-shot compares in the shared space; the encoder gives {encoder.settings.features} features, open it "
            "with `projected`."
        )
    check_output(output, "zero_shot")
    sentences = _checked_sentences(encoder, prompts)
    encoder.load(torch.device(device) if device is not None else PartialState().device)
    vectors = F.normalize(encoder.text_features(sentences).float(), dim=1).cpu()
    scale, _ = encoder.similarity_scale
    head = _head(prompts, dict(zip(sentences, vectors, strict=True)), scale, modality)
    fingerprint = encoder.fingerprint()
    fingerprint.pop("encoder.long_text")  # no sentence here is long: a store may be made with either rule
    save_linear_head(
        output,
        ZeroShotManifest,
        head,
        command=command,
        arguments={"modality": modality},
        prompts=prompts.to_dict(),
        logit_scale=scale,
        encoder=encoder.settings.to_dict(),
        features={"train": {"fingerprint": plain(fingerprint)}},
    )
    return output


def _checked_sentences(encoder: Encoder, prompts: Prompts) -> list[str]:
    """The sentences of `prompts`. Raises `UserError` where one is longer than the encoder takes."""
    sentences = prompts.sentences()
    counts = zip(sentences, encoder.count_tokens(sentences), strict=True)
    long = [f"{text!r} has {count} tokens" for text, count in counts if count > encoder.limit]
    raise_all(long, f"Sentences of more than {encoder.limit} tokens; shorten them")
    return sentences


def _head(prompts: Prompts, vectors: dict[str, Tensor], scale: float, modality: Modality) -> MemeHead:
    """The head from each sentence's unit vector [D]."""

    def means(groups: tuple[tuple[str, ...], ...]) -> Tensor:
        rows = [torch.stack([vectors[text] for text in group]).mean(dim=0) for group in groups]
        return F.normalize(torch.stack(rows), dim=1)

    weight = scale * means(prompts.positive)
    if prompts.problem.kind != "single_label":
        weight = weight - scale * means(prompts.negative)
    if modality == "both":
        weight = torch.cat([weight, weight], dim=1) / 2
    width = len(next(iter(vectors.values())))
    return linear_head(modality, (width, width), prompts.problem, weight)
