"""The checks of gpu_check.py on engines: extraction by a Ray actor and by vLLM's pooling, two processes on one GPU.

Each compares its features with those of one process by transformers.
"""

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gpu_benches import Bench, Unfit


def extracted(bench: Bench, name: str, part: slice = slice(None), **more: Any) -> tuple[Any, float]:
    """The features of the benchmark's memes, and the seconds that all of `extract` took."""
    from itertools import islice

    from ra_hmd.data.meme_dataset import open_data
    from ra_hmd.features.extract_lmm import extract_hidden_states
    from ra_hmd.features.store import read_features
    from ra_hmd.models.checkpoint import open_backbone

    run = open_backbone(str(bench.model_folder))
    memes = list(islice(open_data(bench.data_folder / "a").memes("train"), bench.sizes.memes))[part]
    dtype = "bfloat16" if bench.device.type == "cuda" else "auto"
    shard = max(len(memes) // 4, 1)
    folder = bench.folder / name
    seconds = bench.timed(
        lambda: extract_hidden_states(
            run, memes, folder, batch_size=bench.sizes.batch, shard_size=shard, dtype=dtype, **more
        )
    )
    return read_features(folder), seconds


def compared(bench: Bench, name: str, tolerance: float, **more: Any) -> dict[str, float]:
    """Features made in some way beside those of one process. Raises where they differ by more than `tolerance`."""
    import numpy as np

    plain, alone = extracted(bench, f"{name}_plain")
    other, seconds = extracted(bench, name, **more)
    if other.ids != plain.ids:
        raise RuntimeError("the store has other memes than that of one process")
    scale = float(np.abs(plain.hidden).max())
    difference = float(np.abs(other.hidden - plain.hidden).max()) / scale
    if difference > tolerance:
        raise RuntimeError(
            f"features differ by {difference:.3g} of the largest value, at most {tolerance:g} is allowed"
        )
    return {"memes": len(plain), "one_process_s": alone, "s": seconds, "difference": difference}


def ray_actor(bench: Bench) -> dict[str, float]:
    """`ra-hmd extract --engine ray` with one actor, beside one process: the same features."""
    from ra_hmd.core.workers import WorkerSettings

    if importlib.util.find_spec("ray") is None:
        raise Unfit("Ray is not installed: pip install 'ra-hmd[ray]'")
    settings = WorkerSettings(engine="ray", ray_workers=1)
    return compared(bench, "ray", 1e-2 if bench.device.type == "cuda" else 1e-5, engine=settings)


def vllm_pooling(bench: Bench) -> dict[str, float]:
    """`ra-hmd extract --backend vllm` beside transformers: the state of the last token after the final norm."""
    from ra_hmd.models.generation.engines import vllm_python
    from ra_hmd.models.pooling.settings import BackendSettings

    if vllm_python() is None:
        raise Unfit("vLLM is not installed here, and RA_HMD_VLLM_PYTHON names no other environment (docs/cluster.md)")
    return compared(bench, "vllm", 5e-2, backend=BackendSettings(backend="vllm"))


def two_processes(bench: Bench) -> dict[str, float]:
    """Two processes that extract half of the memes each, at once on one device, beside one that extracts all."""
    import numpy as np

    plain, alone = extracted(bench, "alone")
    half = len(plain) // 2
    parts = [slice(half), slice(half, None)]
    work = partial(_extract_part, str(bench.device.type), bench.folder)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found: list[Any] = []
        seconds = bench.timed(lambda: found.extend(pool.map(work, ["first", "second"], parts)))
    hidden = np.concatenate([features.hidden for features in found])
    if [name for features in found for name in features.ids] != plain.ids:
        raise RuntimeError("the two stores have other memes than that of one process")
    difference = float(np.abs(hidden - plain.hidden).max() / np.abs(plain.hidden).max())
    if difference > (5e-2 if bench.device.type == "cuda" else 1e-5):  # batches of other memes round otherwise
        raise RuntimeError(f"features differ by {difference:.3g} of the largest value")
    return {"one_process_s": alone, "two_processes_s": seconds, "ratio": alone / seconds, "difference": difference}


def _extract_part(device: str, folder: Path, name: str, part: slice) -> Any:
    features, _ = extracted(Bench(device, folder), name, part)
    return features


ENGINES = {
    "ray_actor": (ray_actor, 240),
    "vllm_pooling": (vllm_pooling, 180),
    "two_processes": (two_processes, 240),
}
"""The checks and the seconds that each may take."""
