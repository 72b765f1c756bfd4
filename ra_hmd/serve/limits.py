"""Limits of requests to the API, and sizes of the queue behind it."""

from pydantic import Field

from ra_hmd.core.config import Settings


class RequestLimits(Settings):
    """Size, time and number limits of requests."""

    TITLE = "request limits"

    max_bytes: int = Field(default=32 * 1024 * 1024, gt=0, description="Largest body in bytes, after decompression.")
    max_images: int = Field(default=32, gt=0, description="Most memes in one request.")
    max_pixels: int = Field(default=4096 * 4096, gt=0, description="Largest image in pixels, checked before decoding.")
    max_text: int = Field(default=4096, gt=0, description="Longest caption in characters.")
    time_limit: float = Field(default=30.0, gt=0, description="Seconds for a request, the upload included.")
    max_concurrent: int = Field(
        default=8,
        gt=0,
        description="Most bank requests, and most rationale requests, that run or wait at once.",
    )
    memory_factor: int = Field(
        default=16,
        gt=0,
        description="Memory budget, in bodies and in images of the largest size.",
    )


class BatchingSettings(Settings):
    """Sizes of the queue and of batches."""

    TITLE = "batching"

    max_batch: int = Field(default=32, gt=0, description="Most memes in a forward pass.")
    max_wait_ms: float = Field(
        default=5.0, ge=0, description="Milliseconds that a batch waits for memes that are still being prepared."
    )
    max_queue: int = Field(default=256, gt=0, description="Most memes that are accepted and not yet answered.")
    prepare_threads: int = Field(default=2, gt=0, description="Threads that decode, resize and tokenize.")
