"""Published encoders by short names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A checkpoint on the Hugging Face hub.

    Attributes:
        hub: Its id there.
        image_dim: I, width of the pooled image features.
        text_dim: T, width of the pooled text features.
        projection_dim: Width of both in the shared space.
        resolution: Pixels of a side of the square that the vision tower sees; None where images keep their shape.
    """

    hub: str
    image_dim: int
    text_dim: int
    projection_dim: int
    resolution: int | None


PRESETS = {
    "clip-vit-l-14": Preset("openai/clip-vit-large-patch14", 1024, 768, 768, 224),
    "clip-vit-l-14-336": Preset("openai/clip-vit-large-patch14-336", 1024, 768, 768, 336),
    "openclip-vit-l-14": Preset("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 1024, 768, 768, 224),
    "openclip-vit-h-14": Preset("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1280, 1024, 1024, 224),
    "altclip": Preset("BAAI/AltCLIP", 1024, 768, 768, 224),
    "align": Preset("kakaobrain/align-base", 640, 768, 640, 289),
    "siglip2": Preset("google/siglip2-so400m-patch14-384", 1152, 1152, 1152, 384),
    "siglip2-naflex": Preset("google/siglip2-so400m-patch16-naflex", 1152, 1152, 1152, None),
}
