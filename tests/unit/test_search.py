"""`daal search`: the images that brute force would find, in folders as they come. What it says to
wrong input is in tests/faults/bad_verbs.py."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from programs import daal
from tiny_run import save_model

from daal import checkpoint
from daal.data.images import decode
from daal.errors import CheckpointError, ConfigError
from daal.trained_model import load_trained
from pipelines.run.artefacts import json_bytes
from pipelines.run.find_checkpoint import checkpoint_of
from pipelines.run.folder import RunFolder
from pipelines.search.nearest import nearest

ODD_NAME = "[red]$x$ \u732b\n.jpg"


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 2, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((20, 40), Image.Resampling.BILINEAR).save(path, quality=95)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("run") / "checkpoint")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Images of any names, in folders; and much that is none."""
    root = tmp_path_factory.mktemp("gallery")
    for number in range(8):
        picture(root / f"shots/day {number % 2}/{number}.jpg", number)
    picture(root / ODD_NAME, 8)
    (root / "copy.JPEG").write_bytes((root / "shots/day 1/3.jpg").read_bytes())
    (root / "broken.jpg").write_bytes((root / "copy.JPEG").read_bytes()[:-200])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("no image")
    picture(root / ".hidden/1.jpg", 0)
    outside = picture(root.parent / "outside/1.jpg", 0)
    (root / "link.jpg").symlink_to(outside)
    os.mkfifo(root / "pipe.jpg")
    return root


def brute_force(query_C, gallery_NC, k):
    sq = np.square(gallery_NC.astype(np.float64) - query_C.astype(np.float64)).sum(1)
    order = np.lexsort((np.arange(len(sq)), sq))[:k]
    return order.tolist(), sq[order].tolist()


@pytest.mark.parametrize("scale", [1e-25, 1e30])
def test_nearest__as_brute_force__copies_in_the_order_of_rows(scale):
    features = (np.random.default_rng(0).standard_normal((3_000, 8)) * scale).astype(np.float32)
    features[42] = features[2_000] = features[2_999]
    for k in (3, 20_000):
        rows, sq = nearest(features[2_999], features, k)
        assert (rows.tolist(), sq.tolist()) == brute_force(features[2_999], features, k)
        assert rows[:3].tolist() == [42, 2_000, 2_999]


def test_any_folder__what_brute_force_finds(model, gallery, tmp_path):
    query = picture(tmp_path / "query.jpg", 3)
    code, out, err = daal("search", model, query, gallery, "--json", "--top", 4)
    assert code == 0, err
    found = json.loads(out)

    shots = [f"shots/day {n % 2}/{n}.jpg" for n in range(8)]
    names = sorted([*shots, ODD_NAME, "copy.JPEG"])
    assert found["num_gallery"] == len(names)
    query_C = extracted(model, tmp_path, ["query.jpg"])[0]
    rows, sq = brute_force(query_C, extracted(model, gallery, names), 4)
    assert [match["path"] for match in found["matches"]] == [names[row] for row in rows]
    assert [m["distance"] for m in found["matches"]] == pytest.approx(np.sqrt(sq), abs=1e-3)
    assert {match["path"] for match in found["matches"][:2]} == {"copy.JPEG", "shots/day 1/3.jpg"}
    nearest_one = found["matches"][0]
    assert nearest_one["similarity"] == pytest.approx(1, abs=1e-5) and nearest_one["pid"] is None
    assert {each["path"] for each in found["left_out"]} == {"broken.jpg", "empty.png"}
    assert "broken.jpg: the image data is cut off" in err and "empty.png: the file is" in err


def test_the_query_itself_is_no_match(model, gallery):
    query = gallery / "shots/day 1/3.jpg"
    found = json.loads(daal("search", model, query, gallery, "--json", "--top", 1000)[1])
    paths = [match["path"] for match in found["matches"]]
    assert len(paths) == 9 and paths[0] == "copy.JPEG"


@pytest.mark.parametrize("format", ["png", "svg"])
def test_a_picture_with_plain_names(model, gallery, tmp_path, format):
    out = tmp_path / f"matches.{format}"
    query = picture(tmp_path / "quer$y$.jpg", 8)
    code, table, err = daal("search", model, query, gallery, "--top", 12, "--out", out)
    assert code == 0, err
    assert "[red]$x$" in table and r"\n.jpg" in table  # neither markup nor a new line
    assert str(out) in err.replace("\n", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, query.name])
    if format == "png":
        image = np.asarray(Image.open(out).convert("RGB"))
        assert image.shape[1] > 1000 and image.std() > 10
    else:
        assert "\u732b" not in out.read_text() and "<image" in out.read_text()


def extracted(model, root, names):
    pixels = [decode((root / name).read_bytes(), 32, 16) for name in names]
    return load_trained(model)(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)).numpy()


def test_a_features_file__its_gallery(model, gallery, tmp_path):
    names = [f"shots/day {n % 2}/{n}.jpg" for n in range(8)]
    splits = ["train"] * 2 + ["gallery"] * 6
    file, feature = tmp_path / "f.parquet", extracted(model, gallery, names).tolist()
    pids = [1, 1, 2, 2, 0, -1, 3, 3]
    columns = {"path": names, "split": splits, "pid": pids, "camid": [1] * 8, "feature": feature}
    pq.write_table(pa.table(columns), file)
    query = picture(tmp_path / "query.jpg", 3)
    code, out, err = daal("search", model, query, gallery, "--features", file, "--json")
    assert code == 0, err
    matches = json.loads(out)["matches"]
    assert matches[0]["path"] == names[3] and matches[0]["pid"] == 2
    assert {m["path"] for m in matches} == set(names[2:])
    assert {m["pid"] for m in matches} == {2, 3, None}  # 0 and -1 are nobody
    plain = json.loads(daal("search", model, query, gallery, "--json", "--top", 3)[1])["matches"]
    (same,) = (m for m in plain if m["path"] == names[3])
    assert same["distance"] == pytest.approx(matches[0]["distance"], abs=1e-5)


def test_a_features_file__nothing_outside_the_gallery_is_opened(model, gallery, tmp_path):
    outside = os.path.relpath(gallery.parent / "outside/1.jpg", gallery)
    names = [outside, "/etc/passwd", "a\0b", "link.jpg"]
    file = tmp_path / "f.parquet"
    pq.write_table(pa.table({"path": names, "feature": [[1.0] * 512] * 4}), file)
    query = picture(tmp_path / "query.jpg", 3)
    code, _, err = daal("search", model, query, gallery, "--features", file)
    assert code == 3 and "are not in" in err


def test_a_data_set__its_gallery_split_and_pids(model, tiny_world):
    root = tiny_world / "target"
    query = sorted((root / "query").iterdir())[0]
    code, out, err = daal("search", model, query, root, "--layout", "market1501", "--json")
    assert code == 0, err
    for match in json.loads(out)["matches"]:
        folder, _, name = match["path"].partition("/")
        pid = int(name.partition("_")[0])
        assert (folder, match["pid"]) == ("bounding_box_test", pid if pid > 0 else None)


def test_which_checkpoint_of_a_run(tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        with checkpoint_of(run.uri) as (folder, _):
            checkpoint.load(folder)
    run.append("journal.jsonl", {"stage": "ingest/target", "files": {}})
    with pytest.raises(CheckpointError, match="has no trained model yet"):
        with checkpoint_of(run.uri):
            pass
    first_layers = {}
    for number, stage in enumerate(("pretrain", "iteration-01", "iteration-02", "supervised")):
        folder = save_model(tmp_path / "run" / stage / "checkpoint", seed=number)
        first_layers[stage] = checkpoint.load(folder)[0]["backbone.conv1.weight"]
        run.append("journal.jsonl", {"stage": f"{stage}/train", "files": {}})

    def chosen(where):
        with checkpoint_of(where) as (folder, _):
            found = checkpoint.load(folder)[0]["backbone.conv1.weight"]
        (stage,) = (stage for stage, layer in first_layers.items() if torch.equal(layer, found))
        return stage

    assert chosen(run.uri) == "iteration-02"  # the last, as long as none is selected
    run.write("summary.json", json_bytes({"selected": "iteration-01"}))
    assert chosen(run.uri) == "iteration-01"
    assert chosen(f"file://{tmp_path}/run") == "iteration-01"  # as s3://, by copies
    assert chosen(f"{tmp_path}/run/supervised") == "supervised"
    assert chosen(f"{tmp_path}/run/pretrain/checkpoint") == "pretrain"
    run.write("summary.json", json_bytes({"selected": "../../elsewhere"}))
    assert chosen(run.uri) == "iteration-02"
    for uri, error in (
        (f"file://{tmp_path}/nothing", CheckpointError),
        ("ftp://host/run", ConfigError),
        ("s3://KEY:hush@bucket/run", ConfigError),
    ):
        with pytest.raises(error) as caught, checkpoint_of(uri):
            pass
        assert "hush" not in str(caught.value)
    assert not (tmp_path / "nothing").exists()
