"""Sets on real Ray: read once for all runs, continued by shard, made again if they were deleted."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from rich.console import Console
from tiny_run import changed

from daal.config import Config
from daal.data.images import read
from daal.data.sources import listing, load_set, roots_of
from daal.errors import DataError, StorageError
from pipelines.commands.run import ingest as command
from pipelines.images import ingest as ingesting
from pipelines.images import store as stores
from pipelines.images.ingest import Images, ingest
from pipelines.images.set_of_run import read_set, set_of_run
from pipelines.run import artefacts
from pipelines.run.folder import RunFolder
from pipelines.show.progress import Progress

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "IMAGES_PER_SHARD", 50)


def quiet() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


def all_bytes(images: Images) -> list[bytes]:
    rows = np.arange(len(images.table))
    return [data.to_pybytes() for data in images.store.take(rows)]


def shards(images: Images) -> dict[str, int]:
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(images.store.folder).glob("*.a*")}


def test_a_set_is_read_once__and_stopped_work_is_continued(
    ray_cluster: None, tiny_config: Config
) -> None:
    done: list[tuple[int, int]] = []
    images, aside = ingest(tiny_config, "target", lambda *now: done.append(now))
    root = Path(tiny_config.target.root)
    paths = images.table["path"].to_pylist()
    assert all_bytes(images) == [read(root / path)[0] for path in paths] and not len(aside)
    assert done[0] == (0, 5) and done[-1] == (5, 5)
    made = shards(images)

    done.clear()
    again, _ = ingest(tiny_config, "target", lambda *now: done.append(now))
    assert again == images and not done, "it was there"

    folder = Path(images.store.folder)
    (folder / "store.json").unlink()
    (folder / stores.shard_name(3)).unlink()
    resumed, _ = ingest(tiny_config, "target", lambda *now: done.append(now))
    assert resumed == images and done == [(4, 5), (5, 5)]
    assert {name for name, when in shards(images).items() if made[name] != when} == {
        stores.shard_name(3)
    }

    done.clear()
    shard = folder / stores.shard_name(1)
    data = shard.read_bytes()
    shard.unlink()  # it is mapped into memory
    shard.write_bytes(data[:-9])
    repaired, _ = ingest(tiny_config, "target", lambda *now: done.append(now))
    assert repaired == images and done == [(4, 5), (5, 5)] and shard.read_bytes() == data


def test_the_same_set_from_a_table_and_tars__the_same_images(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    images, _ = ingest(tiny_config, "target")
    root = shutil.copytree(tiny_config.target.root, tmp_path / "set")
    records = load_set(tiny_config.target).to_pylist()
    lines = [f"{r['path']},{r['pid']},{r['camid']},{r['split']}" for r in records]
    (root / "images.csv").write_text("\n".join(["path,pid,camid,split", *lines]))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for record in records:
            label = json.dumps({name: record[name] for name in ("pid", "camid", "split")})
            member = tarfile.TarInfo(record["path"].replace(".jpg", ".json"))
            member.size = len(label)
            tar.addfile(member, io.BytesIO(label.encode()))
            tar.add(root / record["path"], record["path"])
    for layout, name in (("table", "set/images.csv"), ("webdataset", "images.tar")):
        settings = [f"target.layout={layout}", f"target.root={tmp_path}/{name}"]
        other, _ = ingest(changed(tiny_config, *settings), "target")
        assert other.table == images.table and other.store.content == images.store.content
        assert other.store.folder != images.store.folder


def test_a_file_that_is_replaced_while_its_set_is_read__the_set_is_refused_and_read_again(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_config.target.root, tmp_path / "set")
    config = changed(tiny_config, f"target.root={root}", f"store={tmp_path}/stores")
    first, *_, last = (root / path for path in load_set(config.target)["path"].to_pylist())

    def replace(done: int, of: int) -> None:
        if done == of - 1:  # the first image was read, the last perhaps
            shutil.copyfile(last, first)

    with pytest.raises(DataError, match=r"1 of \d+ images in .*set were changed .* again when no"):
        ingest(config, "target", replace)
    assert not list((tmp_path / "stores").iterdir()), "shards of unknown content are left"
    images, _ = ingest(config, "target")
    assert all_bytes(images)[0] == last.read_bytes()


def test_a_file_that_is_gone_while_its_set_is_read__is_set_aside_until_it_is_back(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_config.target.root, tmp_path / "set")
    config = changed(tiny_config, f"target.root={root}", f"store={tmp_path}/stores")
    *others, path = load_set(config.target)["path"].to_pylist()

    def remove(done: int, of: int) -> None:
        if done == 0:
            (root / path).rename(tmp_path / "aside.jpg")

    images, aside = ingest(config, "target", remove)
    assert aside["path"].to_pylist() == [path] and len(images.table) == len(others)
    assert aside["reason"][0].as_py() == "the file can't be read (No such file or directory)"
    again, _ = ingest(config, "target")
    assert again.store != images.store and again.table == images.table, "it isn't listed any more"
    (tmp_path / "aside.jpg").rename(root / path)
    whole, aside = ingest(config, "target")
    assert len(whole.table) == len(others) + 1 and not len(aside)
    assert all_bytes(images) == all_bytes(whole)[:-1], "the store of a run was changed"


def test_a_shard_is_written_where_its_folder_is_seen(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    roots = roots_of(tiny_config.target)
    listed = listing(roots, load_set(tiny_config.target))
    write_on = {**ingesting._nodes_that_see("/"), "max_retries": 1}  # as of another node

    def made(folder: str) -> stores.Shard:
        row = {"shard": 0}
        found = ingesting._make_shard(roots, ray.put(listed), [0, 3], folder, write_on, row)
        return stores.Shard.from_json(found["found"])

    shard = made(str(tmp_path / "store"))
    assert ingesting._whole_shards(str(tmp_path / "store")) == {0: shard} and shard.images == 3
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^/.*/shard-00000\.arrow can't be written"):
        made(str(tmp_path / "file" / "store"))


def test_a_store_that_was_deleted__is_made_again_or_refused(
    ray_cluster: None, tiny_config: Config, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_config.target.root, tmp_path / "set")
    config = changed(tiny_config, f"target.root={root}")
    run = RunFolder(config.out)
    table, _ = read_set(config, "target", run, quiet())
    images = set_of_run(table, config, "target", run, quiet())
    shutil.rmtree(images.store.folder)
    again = set_of_run(table, config, "target", run, quiet())
    assert again == images and all_bytes(again)
    shutil.rmtree(images.store.folder)
    path = root / images.table["path"][0].as_py()
    path.write_bytes((root / images.table["path"][1].as_py()).read_bytes())
    with pytest.raises(DataError, match="were deleted from their store, and its set has other"):
        set_of_run(table, config, "target", run, quiet())


def test_a_run_of_release_0_1__whose_folder_holds_the_images(
    ray_cluster: None, tiny_config: Config
) -> None:
    images, _ = ingest(tiny_config, "target")
    data = pa.array(all_bytes(images), pa.large_binary())
    older = images.table.append_column("image", data).drop_columns(["tracklet", "time", "size"])
    run = RunFolder(tiny_config.out)
    run.write("images/target.parquet", artefacts.table_bytes(older))
    found = set_of_run(older, tiny_config, "target", run, quiet())
    assert all_bytes(found) == all_bytes(images)


def test_daal_ingest__a_run_finds_the_images_there(
    ray_cluster: None, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    roots = [f"{domain}.root={settings.root}" for domain, settings in tiny_config.domains()]
    command("demo", [*roots, f"out={tiny_config.out}"])
    said = " ".join(capsys.readouterr().err.split())
    for domain in ("source", "target"):
        images, _ = ingest(tiny_config, domain, lambda *now: pytest.fail("it is read again"))
        assert f"{domain}: {len(images.table)} images in {images.store.folder}" in said


def test_a_node_without_the_folder__fetches_shards_once(
    ray_cluster: None, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = ingest(tiny_config, "target")
    wanted = all_bytes(images)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "this_node", lambda: "another")
    exists = os.path.exists
    unseen = images.store.folder
    monkeypatch.setattr(os.path, "exists", lambda path: unseen not in str(path) and exists(path))
    stores._shard.cache_clear()
    assert all_bytes(images) == wanted
    cached = {path.name: path.stat() for path in tmp_path.glob("cache/daal-images/*/shard-*")}
    assert len(cached) == 5 and {state.st_mode & 0o777 for state in cached.values()} == {0o600}
    stores._shard.cache_clear()
    monkeypatch.setattr(stores, "_fetched", None)
    assert all_bytes(images) == wanted
