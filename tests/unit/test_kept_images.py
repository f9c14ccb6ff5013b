"""Images that a run has read, beside those that are in their folder now."""

import os
import shutil

import pyarrow as pa
import pytest

from daal.data.layouts import records_to_read
from daal.data.records import IMAGE_TABLE, QUARANTINE_TABLE
from daal.data.sources import load_set
from daal.errors import CheckpointError, ConfigError, DataError
from daal.load_config import load_config
from pipelines.run import artefacts
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config
from pipelines.run.kept_images import image_files, notes_on_images
from pipelines.tools.validate import validate

UNREADABLE = "0002_1_000002.jpg"


def config_of(folder, *settings):
    return load_config(None, [
        f"out={folder}/run", f"target.root={folder}/images", "target.layout=folder",
        "adapt.batch_source=0", *settings,
    ])  # fmt: skip


def begun(folder, *settings):
    """A run that has read a folder of ten images, one of which was set aside."""
    images = folder / "images"
    images.mkdir()
    for number in range(10):
        file = images / f"{number:04d}_1_{number:06d}.jpg"
        file.write_bytes(bytes(100 + number))
        os.utime(file, (1, 1))
    config = config_of(folder, *settings)
    run = RunFolder(config.out)
    keep_config(run, config)
    chosen = records_to_read(
        load_set(config.target), "target", config.max_train_images, config.seed
    )
    kept = [record for record in chosen.to_pylist() if record["path"] != UNREADABLE]
    rows = [
        {**record, "domain": "target", "size": (images / record["path"]).stat().st_size}
        for record in kept
    ]
    aside = [{"path": UNREADABLE, "domain": "target", "reason": "cut off"}]
    tables = [
        pa.Table.from_pylist(rows, IMAGE_TABLE),
        pa.Table.from_pylist(aside if len(kept) < len(chosen) else [], QUARANTINE_TABLE),
    ]
    contents = dict(zip(image_files("target"), map(artefacts.table_bytes, tables), strict=True))
    run.once("ingest/target", list(contents), lambda: contents)
    return RunFolder(config.out), config


def notes(run, config):
    return "\n".join(notes_on_images(run, config))


def test_the_same_images__nothing_is_said(tmp_path):
    run, config = begun(tmp_path)
    assert notes(run, config) == ""
    for file in (tmp_path / "images").iterdir():
        if file.name != UNREADABLE:
            file.touch()  # written again, as unpacking does
    assert notes(run, config) == ""


def test_new_gone_and_changed_images__are_named(tmp_path):
    run, config = begun(tmp_path)
    images = tmp_path / "images"
    for number in range(8):
        (images / f"0077_2_{number:06d}.jpg").write_bytes(b"x")
    (images / "0004_1_000004.jpg").unlink()
    (images / "0005_1_000005.jpg").unlink()
    (images / "0006_1_000006.jpg").write_bytes(b"longer than it was" * 100)
    (images / UNREADABLE).write_bytes(b"repaired")
    said = notes(run, config)
    assert "8 images are new (e.g. '0077_2_000000.jpg')" in said
    assert "2 images are gone (e.g. '0004_1_000004.jpg')" in said
    assert f"2 images are changed (e.g. '{UNREADABLE}')" in said
    assert "another out= reads the set again" in said


def test_a_random_choice_of_images__is_compared_as_a_choice(tmp_path):
    run, config = begun(tmp_path, "max_train_images=5")
    assert notes(run, config) == "", "images that were not chosen are not new"
    for number in range(30):
        (tmp_path / "images" / f"0077_2_{number:06d}.jpg").write_bytes(b"x")
    assert "max_train_images would choose others" in notes(run, config)


def test_a_folder_that_can_no_longer_be_read__is_said(tmp_path):
    run, config = begun(tmp_path)
    (tmp_path / "images" / "holiday.jpg").write_bytes(b"x")
    assert "'holiday.jpg') can't be read as folder names" in notes(run, config)


def test_images_that_were_moved__are_the_runs_own_or_refused(tmp_path):
    run, config = begun(tmp_path)
    moved = config_of(tmp_path, f"target.root={tmp_path}/moved")
    shutil.move(tmp_path / "images", tmp_path / "moved")
    keep_config(run, moved)
    assert f"root: {tmp_path}/moved" in (tmp_path / "run/config.yaml").read_text()

    shutil.copytree(tmp_path / "moved", tmp_path / "images")  # whose files are written now
    (tmp_path / "images" / "0007_1_000007.jpg").write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"target\.root was .*1 image is changed .*'0007_1_0000"):
        keep_config(run, config)
    (tmp_path / "images" / "0007_1_000007.jpg").unlink()
    with pytest.raises(ConfigError, match=r"target\.root was .*1 image is gone .*'0007_1_000007"):
        keep_config(run, config)
    with pytest.raises(DataError, match="isn't a folder"):
        keep_config(run, config_of(tmp_path, f"target.root={tmp_path}/nowhere"))
    assert f"root: {tmp_path}/moved" in (tmp_path / "run/config.yaml").read_text()


def test_images_that_were_read__their_folder_is_not_looked_at(tmp_path):
    run, config = begun(tmp_path)
    shutil.rmtree(tmp_path / "images")
    finished = {line["stage"] for line in run.journal()}
    assert validate(config, finished).warnings == []
    no_file = config_of(tmp_path, f"network.weights={tmp_path}/away.pth")
    assert validate(no_file, {*finished, "pretrain/train"}).warnings == []
    with pytest.raises(CheckpointError, match=r"away\.pth"):
        validate(no_file, finished)
    assert notes(run, config) == ""
    with pytest.raises(DataError, match="isn't a folder"):
        validate(config)


def test_before_images_are_read__the_root_may_change(tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    keep_config(run, config_of(tmp_path))
    keep_config(run, config_of(tmp_path, f"target.root={tmp_path}/elsewhere"))
