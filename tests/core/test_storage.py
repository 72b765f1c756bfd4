"""Objects of an object store are read and written as files are, and what is wrong there is a sentence."""

import multiprocessing
import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from object_stores import pointing_to

from ra_hmd.core import storage
from ra_hmd.core.artifacts import atomic_path, new_folder, read_json, sha256_file, write_json
from ra_hmd.core.errors import UserError
from ra_hmd.core.storage import RemotePath, as_path, is_url, over_places


@pytest.mark.parametrize("place", ["s3://box/a/b.json", "s3:/box/a/b.json", Path("s3://box/a/b.json")])
def test_a_url_is_a_path_however_pathlib_wrote_it(place: str | Path) -> None:
    path = as_path(place)
    assert isinstance(path, RemotePath)
    assert (str(path), path.name, path.suffix, str(path.parent), path.key) == (
        "s3://box/a/b.json", "b.json", ".json", "s3://box/a", "box/a/b.json",
    )  # fmt: skip
    assert str(path.parent / "c") == "s3://box/a/c"
    assert str(path.with_name("d")) == "s3://box/a/d"
    assert str(as_path("s3://box/a/../e")) == "s3://box/e"
    assert as_path(path) is path
    assert path.absolute() is path
    assert pickle.loads(pickle.dumps(path)) == path


@pytest.mark.parametrize("place", ["data/a.json", "/s3/a", "s3/a", "C:/a", "http://host/a", ""])
def test_a_local_path_stays_one(place: str) -> None:
    assert not is_url(place)
    assert type(as_path(place)) is type(Path())
    assert as_path(place) == Path(place)


@pytest.mark.parametrize(("place", "part"), [("s3://", "bucket"), ("gs:///", "bucket"), ("s3://k:s@box/a", "user")])
def test_a_url_without_a_bucket_or_with_a_secret_is_refused(place: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        as_path(place)
    assert "k:s" not in str(caught.value)


def test_a_file_is_written_at_the_end_and_not_after_a_failure(bucket: RemotePath) -> None:
    path = bucket / "atomic" / "a.json"
    with atomic_path(path) as temporary:
        temporary.write_text("1")
        assert not path.exists()
    assert path.read_text() == "1"
    with pytest.raises(FileNotFoundError), atomic_path(path) as temporary:
        temporary.rename(temporary.with_name("gone"))
    assert path.read_text() == "1"
    assert not temporary.parent.exists()


def test_objects_answer_like_files(bucket: RemotePath, tmp_path: Path) -> None:
    for folder in (as_path(tmp_path), bucket / "like"):
        for name in ("b.json", "a.txt", "below/c.json"):
            write_json(folder / name, {"name": name})
        assert read_json(folder / "b.json") == {"name": "b.json"}
        assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.json", "below"]
        assert [path.name for path in folder.glob("*.json")] == ["b.json"]
        assert (folder.is_dir(), folder.is_file(), (folder / "b.json").is_file()) == (True, False, True)
        assert not (folder / "z").exists()
        assert not list((folder / "z").glob("*"))
        assert (folder / "b.json").stat().st_size == len((folder / "b.json").read_bytes())
        with (folder / "b.json").open(encoding="utf-8") as file:
            assert list(file) == ["{\n", '  "name": "b.json"\n', "}\n"]
        with (folder / "b.json").open("rb") as file:
            assert (file.seek(4), file.read(4), file.tell()) == (4, b'"nam', 8)
        with pytest.raises(FileNotFoundError, match="z"):
            (folder / "z").read_bytes()
        (folder / "a.txt").unlink()
        (folder / "a.txt").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            (folder / "a.txt").unlink()
    assert sha256_file(tmp_path / "b.json") == sha256_file(bucket / "like" / "b.json")
    (bucket / "like").remove_below()
    assert not (bucket / "like").exists()


def test_a_file_past_one_request_is_read_whole(bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_BUFFER", 1000)
    content = os.urandom(4321)
    with atomic_path(bucket / "long") as temporary:
        temporary.write_bytes(content)
    with (bucket / "long").open("rb") as file:
        assert file.read() == content
    assert (bucket / "long").read_bytes(10, 20) == content[10:20]


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(
    bucket: RemotePath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "_BUFFER", 1000)
    for byte in (b"a", b"b"):
        with atomic_path(bucket / "changing") as temporary:
            temporary.write_bytes(byte * 5000)
        if byte == b"a":
            file = (bucket / "changing").open("rb")
            assert file.read(10) == b"a" * 10
    with pytest.raises(UserError, match="changing"):
        file.read()


def test_a_new_folder_has_its_manifest_last(bucket: RemotePath, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    upload = RemotePath.upload

    def noted(self: RemotePath, file: str | Path) -> None:
        order.append(self.name)
        upload(self, file)

    monkeypatch.setattr(RemotePath, "upload", noted)
    with new_folder(bucket / "made") as folder:
        write_json(folder / "dataset.json", {})
        (folder / "rows.jsonl").write_text("{}\n")
        (folder / "below").mkdir()
        write_json(folder / "below" / "x.json", {})
    assert order == ["x.json", "rows.jsonl", "dataset.json"]
    with pytest.raises(UserError, match="not an empty folder"), new_folder(bucket / "made"):
        pass


def _read_by_child(path: str) -> bytes:
    return as_path(path).read_bytes()


def test_a_forked_process_reads_too(bucket: RemotePath) -> None:
    write_json(bucket / "forked.json", {})
    assert (bucket / "forked.json").read_bytes() == b"{}\n"
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_read_by_child, [str(bucket / "forked.json")] * 4).get(30) == [b"{}\n"] * 4


def test_what_needs_a_file_of_this_machine_says_so(bucket: RemotePath) -> None:
    actions: tuple[Any, ...] = (
        open,
        os.stat,
        os.listdir,
        lambda path: path.open("w"),
        lambda path: path.write_text(""),
    )
    for action in actions:
        with pytest.raises(UserError, match=r"s3://.*needs a file or folder of this machine; copy it here"):
            action(bucket / "a")


def test_a_missing_bucket_is_named(bucket: RemotePath) -> None:
    path = as_path("s3://nobody-made-this/a")

    def listed(path: Path) -> None:
        list(path.parent.iterdir())

    for action in (RemotePath.is_file, RemotePath.read_bytes, listed, lambda path: write_json(path, {})):
        with pytest.raises(UserError, match="no bucket 'nobody-made-this'"):
            action(path)


def test_denied_access_names_the_credentials(bucket: RemotePath) -> None:
    class Denying:
        def info(self, key: str) -> None:
            raise PermissionError("Access Denied")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_file_system", lambda *_: Denying())
        with pytest.raises(UserError, match="access is denied .*credentials"):
            (bucket / "a").exists()


def test_a_store_that_is_not_there_is_an_error_within_seconds(bucket: RemotePath) -> None:
    began = time.monotonic()
    with pointing_to("http://127.0.0.1:1"), pytest.raises(UserError, match=r"Could not connect.*AWS_ENDPOINT_URL"):
        (bucket / "a").read_bytes()
    assert time.monotonic() - began < 20


def test_missing_credentials_are_named(bucket: RemotePath, tmp_path: Path) -> None:
    nothing = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    with pointing_to(os.environ["AWS_ENDPOINT_URL"], **nothing), pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        with pytest.raises(UserError, match="there are no credentials.*AWS_ACCESS_KEY_ID"):
            (bucket / "a").read_bytes()


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_client_names_its_extra(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"{extra}fs", None)
    with pytest.raises(
        UserError, match=rf"{scheme}:// needs the extra `{extra}` \(.*fs missing\): pip install 'ra-hmd\[{extra}\]'"
    ):
        as_path(f"{scheme}://box/a").is_file()


def test_one_process_asks_for_many_objects_at_a_time_and_keeps_their_order(bucket: RemotePath) -> None:
    for number in range(20):
        write_json(bucket / "many" / str(number), {"number": number})
    places = [bucket / "many" / str(number) for number in range(20)]
    assert [read["number"] for read in over_places(read_json, places)] == list(range(20))
    assert list(over_places(str, [Path("a"), Path("b")])) == ["a", "b"]


def test_the_server_was_asked_with_the_keys_of_the_environment(bucket: RemotePath) -> None:
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket.key)
    assert {"forked.json", "many/7"} <= {one["Key"] for one in listed["Contents"]}


def test_a_client_that_overwrites_where_an_object_should_be_new_is_refused(monkeypatch):
    monkeypatch.setattr("ra_hmd.core.storage.installed_version", lambda name: "0.4.2")
    storage._file_system.cache_clear()
    with pytest.raises(UserError, match=r"s3fs 0\.4\.2 is too old .* pip install -U 'ra-hmd\[s3\]'"):
        as_path("s3://bucket/a").exists()
    storage._file_system.cache_clear()
