"""Official `.pt` files, in the shapes that they come in."""

import numpy as np
import pytest
import torch

from ra_hmd.core.errors import UserError
from ra_hmd.features.legacy import export_pt, import_pt
from ra_hmd.features.store import Features, read_features, write_features

FEATS = torch.arange(12.0).reshape(4, 3)


def save(path, **content):
    torch.save({"ids": ["a", "b", "c", "d"], "feats": FEATS, "labels": torch.tensor([0, 1, 1, 0])} | content, path)
    return path


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"ids": [["a", "b"], ["c", "d"]]},
        {"feats": [FEATS[:3], FEATS[3:]]},
        {"feats": list(FEATS)},
        {"feats": FEATS.to(torch.bfloat16)},
        {"labels": [0, 1, 1, 0]},
        {"labels": [torch.tensor([0, 1]), torch.tensor([1, 0])]},
        {"labels": torch.tensor([[0.0], [1.0], [1.0], [0.0]])},
        {"ids": ("a", "b", "c", "d"), "extra": 3},
    ],
)
def test_shapes_of_the_official_files(tmp_path, content):
    import_pt(save(tmp_path / "f.pt", **content), tmp_path / "store")
    found = read_features(tmp_path / "store")
    assert found.ids == ["a", "b", "c", "d"]
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(found.hidden, FEATS.numpy())
    assert found.embedding is None


@pytest.mark.parametrize(
    "ids", [[1, 2, 3, 4], torch.tensor([1, 2, 3, 4]), [torch.tensor([1, 2]), torch.tensor([3, 4])]]
)
def test_numbers_become_string_ids(tmp_path, ids):
    import_pt(save(tmp_path / "f.pt", ids=ids), tmp_path / "store")
    assert read_features(tmp_path / "store").ids == ["1", "2", "3", "4"]


def test_round_trip(tmp_path):
    hidden = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    features = Features([f"img/{row}.png" for row in range(5)], np.array([0, 1, -1, 1, 0]), hidden)
    write_features(tmp_path / "first", features, {"data": "x"})
    export_pt(tmp_path / "first", tmp_path / "f.pt")
    import_pt(tmp_path / "f.pt", tmp_path / "second")
    found = read_features(tmp_path / "second")
    assert found.ids == features.ids
    assert found.labels.tolist() == features.labels.tolist()
    assert np.array_equal(found.hidden, hidden)
    assert set(torch.load(tmp_path / "f.pt", weights_only=True)) == {"ids", "feats", "labels"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ids": ["a", "b"]}, "2 ids, 4 rows of feats and 4 labels"),
        ({"ids": ["a", "a", "c", "d"]}, "id 'a' occurs 2 times"),
        ({"ids": [1.5, 2.5, 3.5, 4.5]}, "ids are strings or whole numbers"),
        ({"feats": torch.zeros(4, 2, 3)}, r"shapes \[\(4, 2, 3\)\]"),
        ({"feats": torch.zeros(4)}, r"shapes \[\(4,\)\]"),
        ({"feats": [FEATS[:3], torch.zeros(1, 5)]}, "one width"),
        ({"feats": [[1.0, 2.0]]}, "must be a tensor"),
        ({"feats": []}, "must be a tensor"),
        ({"feats": FEATS.masked_fill(FEATS == 4, float("nan"))}, "not finite, the first is 'b'"),
        ({"labels": [0.5, 1, 1, 0]}, "class indices"),
        ({"labels": ["yes", "no", "no", "no"]}, "class indices"),
        ({"labels": [0, 1, 1, -7]}, "class indices"),
        ({"ids": [], "feats": torch.zeros(0, 3), "labels": []}, "no rows"),
    ],
)
def test_wrong_content_is_refused_before_anything_is_written(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        import_pt(save(tmp_path / "f.pt", **content), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        import_pt(tmp_path / "nothing.pt", tmp_path / "store")
    (tmp_path / "text.pt").write_text("not a torch file")
    with pytest.raises(UserError, match="cannot be read safely"):
        import_pt(tmp_path / "text.pt", tmp_path / "store")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match="cannot be read safely"):
        import_pt(tmp_path / "empty.pt", tmp_path / "store")
    torch.save({"ids": [Features]}, tmp_path / "code.pt")  # a pickle that would run code of ours
    with pytest.raises(UserError, match="cannot be read safely"):
        import_pt(tmp_path / "code.pt", tmp_path / "store")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        import_pt(tmp_path / "list.pt", tmp_path / "store")
    torch.save({"ids": []}, tmp_path / "part.pt")
    with pytest.raises(UserError, match="lacks feats, labels; it has ids"):
        import_pt(tmp_path / "part.pt", tmp_path / "store")
