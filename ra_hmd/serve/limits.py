"""Limits of requests to the API, and sizes of the queue behind it."""

from pydantic import Field

from ra_hmd.core.config import Settings

KEEP_ALIVE_SECONDS = 620
"""How long an idle connection stays open. It must be longer than in the proxy in front, which otherwise sends a request
into a connection that is just being closed, and its client gets 502. nginx and the load balancers of AWS keep
connections for 60 seconds, Traefik for 90, Caddy for 120, Azure for 240, and Google Cloud for 600.
"""


class RequestLimits(Settings):
    """Size, time and number limits of requests."""

    TITLE = "request limits"

    max_bytes: int = Field(default=32 * 1024 * 1024, gt=0, description="Largest body in bytes, after decompression.")
    max_images: int = Field(default=32, gt=0, description="Most memes in one request.")
    max_pixels: int = Field(default=4096 * 4096, gt=0, description="Largest image in pixels, checked before decoding.")
    max_text: int = Field(default=4096, gt=0, description="Longest caption in characters.")
    time_limit: float = Field(default=30.0, gt=0, description="Seconds for a request, the upload included.")
    rate_limit: int | None = Field(
        default=None,
        ge=1,
        description="Most requests a minute of a key without a limit of its own (`ra-hmd serve-key --rate-limit`), and "
        "of all without a key together; default: no limit.",
    )
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


class FollowSettings(Settings):
    """How a service follows its bank, which other processes change too."""

    TITLE = "replicas"

    max_lag: float = Field(
        default=10.0,
        gt=0,
        description="Seconds behind the bank's newest version from which on /ready answers 503.",
    )
    follow_seconds: float = Field(default=0.5, gt=0, description="Seconds between two looks for a newer version.")


class BatchingSettings(Settings):
    """Sizes of the queue and of batches."""

    TITLE = "batching"

    max_batch: int = Field(default=32, gt=0, description="Most memes in a forward pass.")
    max_wait_ms: float = Field(
        default=5.0, ge=0, description="Milliseconds that a batch waits for memes that are still being prepared."
    )
    max_queue: int = Field(default=256, gt=0, description="Most memes that are accepted and not yet answered.")
    prepare_threads: int = Field(default=2, gt=0, description="Threads that decode, resize and tokenize.")
