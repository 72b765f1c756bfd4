"""Inputs of a training run: feature stores, rows of a K-shot list and the initial head, checked against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ra_hmd.core.errors import UserError, raise_all
from ra_hmd.core.problem import Problem
from ra_hmd.data.k_shot import check_same_data, read_shot_list, shot_rows
from ra_hmd.features.compatibility import (
    check_head_fits,
    check_same_origin,
    check_store,
    head_fingerprint,
    store_fingerprint,
)
from ra_hmd.features.store import Features, read_features
from ra_hmd.features.test_lock import open_labels
from ra_hmd.models.fusion import FusionConfig
from ra_hmd.models.head import HeadConfig, MemeHead, load_head, read_head_config
from ra_hmd.training.arguments import FUSION_SHAPE, HeadArguments


@dataclass(frozen=True)
class Stores:
    """The data of a run: the training rows, and dev where there is one."""

    train: Features
    dev: Features | None


def read_stores(args: HeadArguments) -> Stores:
    """Read the stores, in full, and check them.

    Raises:
        UserError: labels that are missing, of one class or not as the head has them; features that were made
            otherwise; a dev store of a test split.
    """
    train, problem = read_features(args.train), _problem(args)
    known = {str(args.train): store_fingerprint(train)}
    if args.init_head is not None:
        known[str(args.init_head)] = head_fingerprint(args.init_head)
    dev = read_features(args.dev) if args.dev is not None else None
    check_store(train, args.train, problem)
    problem.refuse_one_class(train.labels, args.train)
    if args.dev is not None and dev is not None:
        open_labels(chosen_by={args.dev: dev})
        check_store(dev, args.dev, problem)
        if args.select_by.endswith("auroc"):
            why = f"`select_by: {args.select_by}` is undefined; give a dev store of several, or select by an accuracy"
            problem.refuse_one_class(dev.labels, args.dev, why)
        if dev.hidden.shape[1] != train.hidden.shape[1]:
            raise UserError(
                f"Hidden states have size {train.hidden.shape[1]} in {args.train} and {dev.hidden.shape[1]} in "
                f"{args.dev}: they come from different models. Make both with one checkpoint."
            )
        known[str(args.dev)] = store_fingerprint(dev)
    check_same_origin(known)
    return Stores(train, dev)


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


def training_rows(args: HeadArguments, train: Features) -> Features:
    """The rows of the requested K-shot list, in the store's order; all rows without `k_shot`.

    Raises:
        UserError: no such list, a list of another data set or split, memes that the store lacks, or of one class only.
    """
    if args.k_shot is None or args.shots is None:
        return train
    chosen = take_shots(train, args.train, args.k_shot, args.shots, args.shot_seed)
    place = f"{args.k_shot}, {args.shots} shots, seed {args.shot_seed},"
    _problem(args).refuse_one_class(chosen.labels, place)
    return chosen


def head_config(args: HeadArguments, train: Features) -> HeadConfig:
    """Shape of the initial head: a fresh one's, or that of `init_head`, with the requested dropout.

    Raises:
        UserError: a fusion that the store has no modalities for, or the other way round; a shape that does not fit.
    """
    if args.init_head is not None:
        config = read_head_config(args.init_head)
        check_head_fits(config, args.init_head, train, args.train)
        return _with_dropout(args, config)
    names = ("num_layers", "proj_dim", "problem_type", "output_dim", "embedding", "input_dropout")
    shape = _fresh_values(args, names)
    blocks = shape.get("num_layers", HeadConfig.model_fields["num_layers"].default) - 1
    fusion = _fresh_fusion(args, train)
    dropout = _each_block(_fresh_values(args, ("dropout",)).get("dropout", ()), blocks)
    return HeadConfig(input_dim=train.hidden.shape[1], fusion=fusion, dropout=dropout, **shape)


def initial_head(args: HeadArguments, train: Features) -> MemeHead:
    """The head of `init_head`, or a fresh one, with the requested dropout."""
    head = MemeHead(head_config(args, train))
    if args.init_head is not None:
        head.load_state_dict(load_head(args.init_head).state_dict())
    return head


def _problem(args: HeadArguments) -> Problem:
    return args.problem if args.init_head is None else read_head_config(args.init_head).problem


def _fresh_values(args: HeadArguments, names: tuple[str, ...]) -> dict[str, Any]:
    """The named settings of a fresh head: what is set, else the command's own; without those that nobody set."""
    values = {name: getattr(args, name) for name in names}
    values = {name: args.FRESH.get(name) if value is None else value for name, value in values.items()}
    return {name: value for name, value in values.items() if value is not None}


def _each_block(rates: tuple[float, ...], blocks: int) -> tuple[float, ...]:
    return rates * blocks if len(rates) == 1 else rates


def _with_dropout(args: HeadArguments, config: HeadConfig) -> HeadConfig:
    """A trained head's shape, with the dropout that is set."""
    changes: dict[str, Any] = {}
    if args.input_dropout is not None:
        changes["input_dropout"] = args.input_dropout
    if args.dropout is not None:
        changes["dropout"] = _each_block(args.dropout, config.blocks)
    if args.map_dropout is not None:
        if config.fusion is None:
            raise UserError(f"`map_dropout` is set, but the head in {args.init_head} has no fusion; remove it.")
        changes["fusion"] = config.fusion.replace(map_dropout=args.map_dropout)
    return config.replace(**changes)


def _fresh_fusion(args: HeadArguments, train: Features) -> FusionConfig | None:
    names = (*FUSION_SHAPE, "map_dropout")
    if train.modalities is None:
        problems = [f"`{name}` is {getattr(args, name)}, but {args.train} has one vector of {train.hidden.shape[1]} "
                    "per meme, not image and text features (`ra-hmd encode` with an encoder of two vectors); remove it."
                    for name in ("fusion", *names) if getattr(args, name) not in (None, "none")]  # fmt: skip
        raise_all(problems, "There is nothing to fuse")
        return None
    kind = args.fusion or args.FRESH.get("fusion")
    image, text = train.modalities
    if kind is None:
        raise UserError(
            f"{args.train} has {image} image and {text} text features: say with `fusion` how the head joins them, "
            "`align` as RGCL does, or `none` for one vector of both."
        )
    if kind == "none":
        return None
    return FusionConfig(image_dim=image, text_dim=text, kind=kind, **_fresh_values(args, names))
