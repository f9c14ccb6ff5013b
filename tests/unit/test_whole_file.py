"""Files that commands write: whole, or as they were."""

import os

import pytest

from daal.errors import StorageError
from daal.whole_file import write_whole


@pytest.mark.parametrize("error, told", [(KeyboardInterrupt, KeyboardInterrupt),
                                         (OSError, StorageError)])  # fmt: skip
def test_an_interrupted_write_leaves_the_old_file(error, told, tmp_path, monkeypatch):
    def fail(descriptor):
        raise error

    out = tmp_path / "labels.parquet"
    write_whole(out, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(told):
        write_whole(out, b"new")
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"


def test_through_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "labels.parquet"
    link.symlink_to(tmp_path / "there" / "labels.parquet")
    for data in (b"1", b"2"):  # of a file that isn't there yet, and of one that is
        write_whole(link, data)
        assert link.is_symlink()
        assert link.read_bytes() == data
