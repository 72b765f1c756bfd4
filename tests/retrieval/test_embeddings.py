"""Embeddings with further views: the rows of all views stay together."""

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.features.store import Features
from ra_hmd.models.head import HeadConfig, MemeHead
from ra_hmd.retrieval.embeddings import Embeddings


def rows(prefix, count, **views):
    rng = np.random.default_rng(count)
    drawn = {name: rng.normal(size=(count, width)).astype(np.float32) for name, width in views.items()}
    return Embeddings([f"{prefix}{i}" for i in range(count)], np.arange(count) % 2,
                      rng.normal(size=(count, 4)).astype(np.float32), views=drawn)  # fmt: skip


def test_features_give_their_hidden_states_and_views():
    hidden = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    features = Features(["a", "b", "c"], np.zeros(3, int), hidden, views={"untuned": hidden * 2})
    head = MemeHead(HeadConfig(input_dim=6, proj_dim=4))
    made = Embeddings.of(features, head)
    assert made.view("embedding") is made.embedding
    assert np.array_equal(made.view("hidden"), hidden)
    assert np.array_equal(made.view("untuned"), hidden * 2)


def test_an_unknown_view_is_refused_with_those_there_are():
    with pytest.raises(UserError, match=r"'clip' .*\(embedding, untuned\).*--views"):
        rows("a", 3, untuned=2).view("clip")


def test_select_and_plus_keep_the_rows_of_all_views_together():
    first, second = rows("a", 3, untuned=2, hidden=5), rows("b", 2, hidden=5)
    both = first.plus(second).select(np.array([4, 0]))
    assert both.ids == ["b1", "a0"]
    assert set(both.views) == {"hidden"}, "a view of some of the rows is none of all"
    assert np.array_equal(both.view("hidden"), np.stack([second.views["hidden"][1], first.views["hidden"][0]]))
