"""Workers' parts of an extraction: the same blocks whatever their number and what was there."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from torch import Tensor

from daal.config import Config
from daal.errors import DataError, StorageError
from daal.load_config import load_config
from daal.nn.network import DaalNetwork
from daal.trained_model import TrainedModel
from pipelines.images.ingest import Images
from pipelines.images.pixels import ImageSource
from pipelines.run import artefacts
from pipelines.run.feature_blocks import FeatureBlocks, block_files, rows_of_block
from pipelines.run.folder import RunFolder, entry_of
from pipelines.training import extract as module
from pipelines.training.extract import BATCH, ExtractJob, extract

NUM_IMAGES = 150  # three blocks
ROWS = np.arange(NUM_IMAGES)
TABLE = pa.table({
    "path": [f"{n}.jpg" for n in range(NUM_IMAGES)], "pid": ROWS, "camid": ROWS % 3,
    "split": ["train", "gallery"] * 75, "domain": ["target"] * NUM_IMAGES, "size": ROWS,
})  # fmt: skip


def config(*settings: str) -> Config:
    return load_config(None, [
        "network.backbone=resnet18", "network.weights=none", "input.height=32", "input.width=16",
        "mixed_precision=false", *settings,
    ])  # fmt: skip


class Pretended:
    """Workers of one process, which run a job one after the other; rank 0 may die."""

    def __init__(self, number: int, folder: RunFolder | None = None) -> None:
        self.number, self.folder = number, folder or RunFolder("nowhere", create=False)
        self.batches: list[int] = []
        self.dies_at: int | None = None

    def run(self, job: ExtractJob) -> list[Any]:
        return [job.run(self.worker(rank)) for rank in range(self.number)]

    def worker(self, rank: int) -> Any:
        return SimpleNamespace(
            rank=rank, world_size=self.number, device=torch.device("cpu"), log=print,
            reach=self.reach, folder=self.folder,
        )  # fmt: skip

    def reach(self, stage: str, batch: int) -> None:
        if batch == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(batch)


@pytest.fixture(autouse=True)
def pixels_NHWC(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Pixels of all images, which are kept or decoded."""
    draw = np.random.default_rng(0)
    found = torch.from_numpy(draw.integers(0, 256, (NUM_IMAGES, 32, 16, 3), np.uint8))
    reader = SimpleNamespace(read=lambda rows: found[rows])
    monkeypatch.setattr(module, "pixel_reader", lambda *_: reader)
    monkeypatch.setattr(
        module, "streamed_rows", lambda source, batches, size: (found[rows] for rows in batches)
    )
    for name in ("get", "put"):
        monkeypatch.setattr(ray, name, lambda given: given)
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    torch.manual_seed(0)
    network = DaalNetwork(config().network)
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def given(weights: Any, workers: Pretended, kept: np.ndarray = ROWS) -> tuple[Any, ...]:
    """What `extract` is given, if these rows are kept decoded."""
    source = ImageSource(None, (), np.where(np.isin(ROWS, kept), ROWS, -1))  # type: ignore[arg-type]
    pixels = SimpleNamespace(source=lambda images: source)
    return "extract", Images(TABLE, None), config(), weights, workers, pixels  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("batch", [2, 7, 100])
def test_features_are_in_the_rows_order(
    pixels_NHWC: Tensor, weights: Any, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setitem(BATCH, "cpu", batch)
    table = pa.concat_tables(extract(*given(weights, Pretended(2))).values())
    assert table["path"].to_pylist() == TABLE["path"].to_pylist()
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    with torch.inference_mode():
        expected_NC = TrainedModel(config(), tensors)(pixels_NHWC.permute(0, 3, 1, 2))
    np.testing.assert_allclose(artefacts.features_array(table), expected_NC, rtol=1e-4, atol=1e-5)


def test_any_number_of_workers__kept_or_decoded__the_same_files(
    weights: Any, tmp_path: Path
) -> None:
    folders = []
    for number, kept in ((1, ROWS), (2, ROWS[:100]), (5, ROWS[:0])):
        folder = RunFolder(str(tmp_path / f"{number}"))
        entries = extract(*given(weights, Pretended(number, folder), kept), ROWS, "features")
        folders.append(files_of(Path(folder.path("features"))))
        assert list(entries) == block_files("features", NUM_IMAGES)
        assert all(entry_of(folder.read(name)) == entry for name, entry in entries.items())
    assert folders[0] == folders[1] == folders[2] and len(folders[0]) == 3


def test_killed__whole_blocks_are_kept_for_the_same_inputs_alone(
    weights: Any, tmp_path: Path
) -> None:
    folder = RunFolder(str(tmp_path))
    workers = Pretended(1, folder)
    wanted = extract(*given(weights, workers), ROWS, "wanted")
    workers.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        extract(*given(weights, workers), ROWS, "features")
    left = files_of(tmp_path / "features")
    assert "made_from" in left and 1 <= len(left) - 1 < 3
    (tmp_path / "features/00002.parquet").write_bytes(b"cut off")
    workers.dies_at, workers.batches = None, []
    found = extract(*given(weights, workers), ROWS, "features")
    assert len(workers.batches) == 3 - (len(left) - 1), "a whole block was made again"
    assert list(found.values()) == list(wanted.values())
    assert "made_from" not in files_of(tmp_path / "features")

    for inputs in ("", "others"):  # after the end, and after other stages
        folder.inputs = inputs
        folder.write("features/made_from", b"another")
        workers.batches.clear()
        extract(*given(weights, workers), ROWS, "features")
        assert len(workers.batches) == 3


def test_features_that_are_not_finite(weights: Any) -> None:
    broken = weights | {"backbone.conv1.weight": weights["backbone.conv1.weight"] * np.nan}
    with pytest.raises(DataError, match="not finite"):
        extract(*given(broken, Pretended(1)))


@pytest.mark.parametrize("num_rows", [1, 64, 65, 4096, 4097, 12_936, 524_289, 10_000_000])
def test_blocks_of_so_many_rows(num_rows: int) -> None:
    size = rows_of_block(num_rows)
    assert size in {64 * 2**n for n in range(8)}, "batches fill blocks"
    assert (len(block_files("x", num_rows)) - 1) * size < num_rows
    assert size == 8192 or len(block_files("x", num_rows)) <= 64


def test_reading_some_rows__of_a_part__and_a_damaged_file(tmp_path: Path) -> None:
    folder, rows = RunFolder(str(tmp_path)), np.arange(0, 300, 2)
    features = np.random.default_rng(0).standard_normal((NUM_IMAGES, 6)).astype(np.float32)
    for name, block in zip(block_files("f", NUM_IMAGES), np.split(ROWS, [64, 128]), strict=True):
        table = artefacts.features_table(TABLE.take(block), features[block])
        folder.write(name, artefacts.table_bytes(table))
    entries = {name: entry_of(folder.read(name)) for name in block_files("f", NUM_IMAGES)}
    blocks = FeatureBlocks(folder, entries, rows)
    wanted = np.array([298, 0, 140, 2])
    assert np.array_equal(blocks.of(wanted).read(), features[wanted // 2])
    part = features[wanted // 2, 2:4]
    length = np.linalg.norm(part, axis=1, keepdims=True)
    assert np.array_equal(blocks.of(wanted, 1, 2).read(), part / length)
    data = bytearray(folder.read("f/00001.parquet"))
    data[100] ^= 1
    folder.write("f/00001.parquet", bytes(data))
    assert len(blocks.of(np.array([0])).read()) == 1, "other blocks can be read"
    with pytest.raises(StorageError, match=r"f/00001\.parquet is damaged"):
        blocks.of(wanted).read()
