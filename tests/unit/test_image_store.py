"""A store of images: whole shards are kept, others made again; rows by shard; private files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from daal.data.records import records_of
from daal.errors import DataError, StorageError
from pipelines.images import store as stores
from pipelines.images.ingest import _bounds, _key, _whole_shards
from pipelines.images.store import Shard


def write(folder: Path, *shards: list[bytes]) -> list[Shard]:
    for number, images in enumerate(shards):
        bad = [(number, "cut off")] if number else []
        data, _ = stores.packed(images, bad)
        stores.write_private(str(folder), stores.shard_name(number), data)
    return [shard for _, shard in sorted(_whole_shards(str(folder)).items())]


def test_rows_are_read_from_their_shards__in_the_order_asked_for(tmp_path: Path) -> None:
    images = [bytes([n]) * (n + 1) for n in range(7)]
    shards = write(tmp_path / "a", images[:3], [], images[3:])
    made, bad = stores.finish(str(tmp_path / "a"), shards)
    opened = stores.opened(str(tmp_path / "a"))
    assert opened == (made, bad) == (made, [(1, "cut off"), (2, "cut off")])
    rows = np.array([6, 0, 3, 2, 2])
    assert [data.to_pybytes() for data in made.take(rows)] == [images[row] for row in rows]
    assert made.take(np.empty(0, np.int64)) == []
    other, _ = stores.finish(str(tmp_path / "a"), shards[:1])
    assert other.content != made.content


def test_only_whole_shards_count(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shards = write(folder, [b"x"], [b"y"])
    assert stores.opened(str(folder)) is None, "it was not finished"
    path = folder / stores.shard_name(1)
    path.write_bytes(path.read_bytes()[:-9])
    (folder / "shard-00002.arrow.0a.partial").write_bytes(b"half")
    assert list(_whole_shards(str(folder))) == [0]
    stores.finish(str(folder), shards)
    assert stores.opened(str(folder)) is None, "a shard is cut off"
    path.unlink()
    assert stores.opened(str(folder)) is None, "a shard is missing"
    assert _whole_shards(str(tmp_path / "nowhere")) == {}


def test_files_are_private_to_their_owner(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        stores.finish(str(tmp_path / "deep/a"), write(tmp_path / "deep/a", [b"x"]))
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path).as_posix(): p.stat().st_mode & 0o777
             for p in tmp_path.rglob("*")}  # fmt: skip
    assert modes == {"deep": 0o700, "deep/a": 0o700, "deep/a/shard-00000.arrow": 0o600,
                     "deep/a/store.json": 0o600}  # fmt: skip


def test_what_is_gone_or_cant_be_written__is_said(tmp_path: Path) -> None:
    made, _ = stores.finish(str(tmp_path / "a"), write(tmp_path / "a", [b"x"]))
    os.rename(tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="is not there any more; start the run again"):
        made.take(np.array([0]))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a/store\.json can't be written: .*another store"):
        stores.write_private(str(tmp_path / "file/a"), "store.json", b"")


def test_shards_end_at_a_number_of_images_or_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.images.ingest.IMAGES_PER_SHARD", 3)
    monkeypatch.setattr("pipelines.images.ingest.BYTES_PER_SHARD", 10)
    assert _bounds(np.array([1, 1, 1, 1, 9, 1, 100, -1, 2])) == [0, 3, 5, 6, 7, 9]
    assert _bounds(np.array([5])) == [0, 1]


def test_the_key_is_of_roots_and_listing() -> None:
    def key(root: str = "/x", mtime: int = 1, **known: Any) -> str:
        records = records_of(["a", "b"], **known)
        return _key([root], records.append_column("mtime", pa.array([1, mtime])))

    assert key() == key("/y/../x") == key(pid=3), "pids are no part of the images"
    box = {"x": [0, None], "y": [0, None], "w": [4, None], "h": [4, None]}
    others = [key("/y"), key(mtime=2), key(size=[1, -1]), key(file="c"), key(offset=5), key(**box)]
    assert len({key(), *others}) == 7


@pytest.mark.parametrize(
    ("store", "out", "folder"),
    [
        ("", "/runs/a", "/runs/daal-images"),
        ("", "file:///runs/a", "/runs/daal-images"),
        ("/elsewhere", "/runs/a", "/elsewhere"),
        ("", "s3://b/runs/a/?region=x", "s3://b/runs/daal-images?region=x"),
        ("s3://b/images", "/runs/a", "s3://b/images"),
    ],
)
def test_stores_lie_beside_the_runs__or_where_the_setting_says(
    store: str, out: str, folder: str
) -> None:
    assert stores.stores_folder(store, out) == folder
