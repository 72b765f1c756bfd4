"""Selection of the rows of a feature store that a K-shot list names."""

from pathlib import Path

import numpy as np

from ra_hmd.data.k_shot import check_same_data, read_shot_list, shot_rows
from ra_hmd.features.store import Features


def take_shots(features: Features, place: str | Path, path: str | Path, shots: int, seed: int) -> Features:
    """Select the rows of a K-shot list, in the order of the store at `place`.

    Raises:
        UserError: see `read_shot_list`; a list of another data set or split, as far as the store states its own; memes
            that the store lacks.
    """
    known = features.manifest
    ids = read_shot_list(path, shots, seed, known.dataset_split)
    check_same_data(path, place, known.dataset)
    return features.select(np.array(shot_rows(ids, features.ids, path, place), dtype=np.int64))
