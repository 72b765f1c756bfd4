"""Write an encoder's features of memes: sharded, resumable, over as many processes as torchrun starts."""

from collections.abc import Mapping
from pathlib import Path

from ra_hmd.data.record import Meme
from ra_hmd.encoders.encoder import Encoder
from ra_hmd.features.making import make_features


def encode(
    encoder: Encoder,
    memes: list[Meme],
    output: str | Path,
    *,
    split: str = "",
    source: Mapping[str, str | None] | None = None,
    label_classes: int | None = None,
    batch_size: int = 32,
    shard_size: int = 512,
    num_workers: int = 2,
) -> Path:
    """Write a feature store of `memes` with image and text features. Run again after a stop, it does what is missing.

    What a row holds does not depend on batch size, shards or number of ranks, up to rounding. The manifest has the
    settings as `encoder`, and as `captions` how many tokens a caption may have, how many the longest has, and how many
    captions have more (they were cut, or averaged over pieces).

    Args:
        encoder: The model; its weights are loaded when there is something to do.
        memes: The data, in the order of the store.
        output: Folder of the store.
        split: Recorded in the manifest.
        source: What the memes are (`describe_source`); recorded in the manifest.
        label_classes: C, where a meme may have several labels.
        batch_size: Memes per call of each tower; memes with captions of similar length share one.
        shard_size: Rows per file; a stop loses at most one unfinished shard per rank.
        num_workers: Processes that decode and resize images beside each rank.

    Raises:
        UserError: unreadable images (all listed before the weights are loaded), labels of another kind, or `output`
            holds other features.
    """
    tokens = encoder.count_tokens([meme.text for meme in memes])
    length = dict(zip((meme.id for meme in memes), tokens, strict=True))
    captions = {
        "limit": encoder.limit,
        "longest": max(tokens),
        "over_limit": sum(count > encoder.limit for count in tokens),
    }
    return make_features(
        memes,
        output,
        encoder.load,
        encoder.fingerprint(),
        lambda meme, _: length[meme.id],
        label_classes=label_classes,
        batch_size=batch_size,
        shard_size=shard_size,
        num_workers=num_workers,
        description="Encoding",
        split=split,
        source=source,
        encoder=encoder.settings.to_dict(),
        captions=captions,
    )


def describe_captions(limit: int, longest: int, over_limit: int, long_text: str) -> str:
    """One sentence on captions that were too long; empty when none was."""
    if not over_limit:
        return ""
    done = "averaged over pieces" if long_text == "average" else "cut off (--long-text average keeps all of them)"
    return f"{over_limit} captions have more than {limit} tokens, the longest {longest}; they were {done}."
