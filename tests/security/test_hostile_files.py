"""S1, S3: files that would run a command where they are unpickled. Refused, and no mark is left.

Weights files (.pth, whole or in part a pickle): tests/unit/test_checkpoint.py.
"""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  registers Ray's Arrow types, as a run does
import torch
import torchvision
from payload import Payload
from programs import daal

from daal.config import NetworkConfig
from daal.errors import CheckpointError, DaalError
from daal.nn.network import DaalNetwork
from pipelines.run.folder import RunFolder


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


def assert_refused(path):
    """By the commands that read a features file."""
    for command in (["label", path, f"--out={path.parent}/labels.parquet"], ["evaluate", path]):
        try:
            code = daal(*command)[0]
        except TypeError:  # from within Ray's own reader of such types
            continue
        assert code in (3, 7)


def test_the_payload_works(mark):
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


def test_s1_npy_of_objects(tmp_path, mark):
    path = tmp_path / "features.npy"
    np.save(path, np.array([[Payload(mark)]], object), allow_pickle=True)
    assert_refused(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "kind",
    [
        "ray.data.arrow_tensor", "ray.data.arrow_tensor_v2",
        "ray.data.arrow_variable_shaped_tensor", "ray.data.arrow_pickled_object",
        "arrow.py_extension_type",
    ],
)  # fmt: skip
def test_s3_arrow_types_that_some_releases_unpickle(tmp_path, mark, kind):
    # Ray 2.49-2.54 and pyarrow up to 14 ran what such metadata says as soon as a file was opened.
    payload = pickle.dumps(Payload(mark))
    storage = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    if kind == "ray.data.arrow_pickled_object":
        storage = pa.array([payload, payload], pa.large_binary())
    metadata = {"ARROW:extension:name": kind, "ARROW:extension:metadata": payload}
    field = pa.field("feature", storage.type, metadata=metadata)
    path = tmp_path / "features.parquet"
    pq.write_table(pa.Table.from_arrays([storage], schema=pa.schema([field])), path)
    assert_refused(path)  # here, if only because these are no real features
    assert not mark.exists()


def test_s1_a_journal_is_json_and_no_more(tmp_path, mark):
    run = RunFolder(str(tmp_path / "run"))
    lines = f'!!python/object/apply:os.system ["touch {mark}"]\nos.system("touch {mark}")\n'
    (tmp_path / "run/journal.jsonl").write_text(lines)
    assert run.journal() == [] and not mark.exists()


def test_s1_imagenet_weights_in_the_cache(tmp_path, mark, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    cached = tmp_path / "hub/checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(Payload(mark), cached)
    with pytest.raises(CheckpointError):
        DaalNetwork(NetworkConfig(backbone="resnet18", weights="imagenet"), 2)
    assert not mark.exists()


@pytest.mark.parametrize("out", ["http://127.0.0.1:9/run", "https://example.com/run", "ftp://h/r"])
def test_s8_no_run_folder_is_fetched(out):
    with pytest.raises(DaalError, match="can't be used as a run folder"):
        RunFolder(out)
