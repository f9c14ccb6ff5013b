import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from daal.data.images import check
from daal.data.layouts import load_records
from daal.data.records import SPLITS, of_split
from daal.drawn.domain_style import SOURCE, TARGET, DomainStyle
from daal.drawn.domains import MARKER, draw_domains, draw_person, figure_mask, figure_masks
from daal.errors import DataError

SMALL: dict[str, Any] = {
    "num_train_ids": 3,
    "num_test_ids": 2,
    "images_per_camera": 2,
    "size": (32, 16),
}


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.jpg")}


def test_an_image_repeats__and_every_part_of_its_key_changes_it() -> None:
    keys = [(3, 2, 25, 1), (4, 2, 25, 1), (3, 1, 25, 1), (3, 2, 50, 1), (3, 2, 25, 2)]
    images = [draw_person(TARGET, 3, 2, 25, 1), *(draw_person(SOURCE, *key) for key in keys)]
    assert {(image.shape, image.dtype.name) for image in images} == {((128, 64, 3), "uint8")}
    assert len({image.tobytes() for image in images}) == len(images)
    assert np.array_equal(images[1], draw_person(SOURCE, *keys[0]))
    assert draw_person(TARGET, 1, 1, 25, size=(64, 48)).shape == (64, 48, 3)


@pytest.mark.parametrize("style", [SOURCE, TARGET])
@pytest.mark.parametrize("pid", [-1, 0, 7])
def test_junk_and_distractors_draw_too(style: DomainStyle, pid: int) -> None:
    for camid in range(1, len(style.cameras) + 1):
        for frame in range(25, 150, 25):
            assert draw_person(style, pid, camid, frame).std() > 3


def test_an_identity_looks_more_like_itself_than_like_others() -> None:
    """Colours of the torso: a person's own pictures by one camera against other people's."""

    def torso(pid: int, frame: int) -> npt.NDArray[np.float64]:
        return np.asarray(draw_person(SOURCE, pid, 1, frame)[35:55, 26:38].mean((0, 1)))

    first = np.stack([torso(pid, 25) for pid in range(1, 31)])
    second = np.stack([torso(pid, 50) for pid in range(1, 31)])
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)
    assert np.median(np.diag(distance)) < 0.5 * np.median(distance)


def test_domains_are_market_data_sets(tmp_path: Path) -> None:
    draw_domains(tmp_path, **SMALL)
    for name in ("source", "target"):
        records = load_records("market1501", tmp_path / name)
        people = {
            split: {(r["pid"], r["camid"]) for r in of_split(records, split).to_pylist()}
            for split in SPLITS
        }
        assert {pid for pid, _ in people["train"]} == {1, 2, 3}
        assert {pid for pid, _ in people["query"]} == {4, 5}
        assert {pid for pid, _ in people["gallery"]} == {-1, 0, 4, 5}
        queries = people["query"]
        for pid in (4, 5):
            assert len([camid for p, camid in queries if p == pid]) >= 2
        assert queries == {(pid, camid) for pid, camid in people["gallery"] if pid > 0}
        for path in records["path"].to_pylist():
            data = (tmp_path / name / path).read_bytes()
            assert check(data) is None
    with Image.open(next((tmp_path / "target" / "query").iterdir())) as image:
        assert image.size == (16, 32) and image.format == "JPEG"


def test_a_file_can_be_drawn_again_from_its_name(tmp_path: Path) -> None:
    draw_domains(tmp_path / "all", seed=5, **SMALL)
    path = sorted((tmp_path / "all" / "target" / "bounding_box_test").glob("0004_c*"))[0]
    camid, frame = int(path.name[6]), int(path.name[10:16])
    again = tmp_path / "again.jpg"
    image = draw_person(TARGET, 4, camid, frame, 5, SMALL["size"])
    Image.fromarray(image).save(again, quality=90)
    assert again.read_bytes() == path.read_bytes()


def test_the_seed_decides_on_the_bytes__and_not_the_workers(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {"workers": 2}), ("c", {"seed": 1})):
        draw_domains(tmp_path / name, **SMALL, **options)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in a.keys() & c.keys())


def test_finished_output_is_left_alone_and_interrupted_output_is_finished(tmp_path: Path) -> None:
    draw_domains(tmp_path, **SMALL)
    victim = next((tmp_path / "source" / "query").iterdir())
    victim.unlink()
    draw_domains(tmp_path, **SMALL)
    assert not victim.exists()
    marker = tmp_path / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "complete": False}))
    draw_domains(tmp_path, **SMALL)
    assert victim.exists() and json.loads(marker.read_text())["complete"]


def test_other_output_is_not_overwritten(tmp_path: Path) -> None:
    draw_domains(tmp_path / "mine", **SMALL)
    (tmp_path / "yours").mkdir()
    (tmp_path / "yours" / "thesis.tex").touch()
    for name in ("mine", "yours"):
        with pytest.raises(DataError, match="something else than these synthetic domains"):
            draw_domains(tmp_path / name, seed=1, **SMALL)
    with pytest.raises(DataError, match="is a file"):
        draw_domains(tmp_path / "yours" / "thesis.tex", **SMALL)


@pytest.mark.parametrize(
    "change",
    [{"num_test_ids": 0}, {"num_train_ids": 99999}, {"images_per_camera": 1}, {"size": (8, 8)},
     {"seed": -1}],
)  # fmt: skip
def test_impossible_requests(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(DataError, match="Synthetic domains need"):
        draw_domains(tmp_path / "out", **{**SMALL, **change})
    assert not (tmp_path / "out").exists()


def test_mask__is_the_figure(tmp_path: Path) -> None:
    draw_domains(tmp_path, **SMALL | {"size": (64, 32)})
    folder = tmp_path / "target" / "bounding_box_train"
    paths = sorted(str(path.relative_to(tmp_path / "target")) for path in folder.iterdir())
    masks = figure_masks(tmp_path / "target", paths)
    assert masks.shape == (len(paths), 64, 32)
    assert (masks.mean((1, 2)) > 0.1).all() and (masks.mean((1, 2)) < 0.6).all()
    # Boxes have the person in the middle and the surroundings at the edges.
    assert masks[:, 24:40, 13:19].mean() > 0.9 and masks[:, :, [0, -1]].mean() < 0.05
    image, without = (
        draw_person(TARGET, 1, 1, 25, 0, (64, 32), figure) for figure in (True, False)
    )
    mask = figure_mask(TARGET, 1, 1, 25, 0, (64, 32))
    assert np.array_equal(image[~mask], without[~mask])


def test_mask__of_what_is_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="is not a folder of drawn images"):
        figure_masks(tmp_path / "target", ["0001_c1s1_000025_01.jpg"])
    draw_domains(tmp_path / "new", **SMALL)
    with pytest.raises(DataError, match=r"me\.jpg is not the name of a drawn image"):
        figure_masks(tmp_path / "new" / "source", ["me.jpg"])
    marker = tmp_path / "new" / MARKER
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "drawing": 1}))
    with pytest.raises(DataError, match="drawn by another version"):
        figure_masks(tmp_path / "new" / "source", ["0001_c1s1_000025_01.jpg"])
