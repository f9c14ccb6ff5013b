"""What `daal export`, `search`, `report` and `replay` are given."""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from bad_features import parquet
from bad_input import PICTURE, Case, case, encoded, picture, write

from daal import checkpoint
from daal.load_config import load_config
from daal.nn.network import DaalNetwork

SETTINGS = ["input.height=32", "input.width=16", "network.backbone=resnet18",
            "network.weights=none", "mixed_precision=false"]  # fmt: skip
TRAINED = '{"stage": "pretrain/train", "seconds": 1, "files": {}}\n'
NO_RUN = "is not a run folder: there is no config.yaml in it"


@cache
def model_folder() -> tempfile.TemporaryDirectory[str]:
    """A whole checkpoint of a small model, made once: cases link to it."""
    folder = tempfile.TemporaryDirectory()
    config = load_config(None, SETTINGS)
    torch.manual_seed(0)
    network = DaalNetwork(config.network)
    metadata = {"config": config.model_dump(mode="json")}
    checkpoint.save(Path(folder.name, "checkpoint"), network.state_dict(), metadata)
    return folder


def model() -> None:
    os.symlink(f"{model_folder().name}/checkpoint", "checkpoint")


def nothing() -> None:
    pass


def features(channels: int = 512, path: str | None = "a.jpg", value: float = 1.0) -> None:
    """`f.parquet` of one image."""
    feature = np.full((1, channels), value, np.float32).tolist()
    paths = None if path is None else [path]
    write("f.parquet", parquet(feature=feature, path=paths, pid=None, camid=None, split=None))


def bad_scores() -> None:
    write("run/config.yaml", "seed: 0\n")
    write("run/journal.jsonl", TRAINED)
    write("run/summary.json", '{"selected": 7}')
    write("run/pretrain/evaluation.json", "{}")


SEARCHES: list[tuple[str, Callable[[], object], str, int, str]] = [
    # name, what there is beside model, query and gallery, arguments, exit code, what must be said
    ("no such query", nothing, "gone.jpg gallery", 3,
     "the query image gone.jpg can't be used: there is no such file"),
    ("a query cut off", lambda: write("q.jpg", PICTURE[:-200]), "q.jpg gallery", 3,
     "q.jpg can't be used: the image data is cut off"),
    ("no such gallery", nothing, "query.png gone", 3, "the gallery gone isn't a folder"),
    ("a gallery without images", lambda: write("empty/notes.txt", "no image"), "query.png empty", 3,
     "There are no images in empty"),
    ("unknown layout", nothing, "query.png gallery --layout ImageNet", 2,
     "--layout ImageNet is unknown"),
    ("a picture that can't be drawn", nothing, "query.png gallery --out m.gif", 2,
     "--out m.gif: a picture's name must end in one of .png"),
    ("features of other channels", lambda: features(8), "query.png gallery --features f.parquet", 3,
     "f.parquet has features of 8 channels, and this model's have 512"),
    ("features of unknown images", lambda: features(path=None),
     "query.png gallery --features f.parquet", 3,
     "f.parquet does not say which images its features are of"),
    ("features of other images", lambda: features(path="gone.jpg"),
     "query.png gallery --features f.parquet", 3, "(e.g. 'gone.jpg') are not in gallery"),
    ("features of another model", lambda: features(value=0.0),
     "query.png gallery --features f.parquet", 3,
     "f.parquet was not made by this checkpoint of these images"),
]  # fmt: skip


def search(name: str, make: Callable[[], object], arguments: str, code: int, says: str) -> Case:
    def world() -> None:
        model()
        write("query.png", encoded(picture(1), "PNG"))
        write("gallery/a.jpg")
        make()

    return case("Search", name, world, f"search checkpoint {arguments}", code, says)


CASES = [
    case("Export", "unknown format", model, "export checkpoint --format tflite --out m.tflite", 2,
         "--format tflite is unknown"),
    case("Export", "a name of another format", model,
         "export checkpoint --format torch --out m.pt", 2, "--out m.pt", "must end in .pt2"),
    case("Export", "a run without a model yet", lambda: write("run/journal.jsonl", ""),
         "export run --format safetensors --out m.safetensors", 4, "run has no trained model yet"),
    *(search(*row) for row in SEARCHES),
    case("Report", "a comparison with what is no run",
         lambda: write("run/config.yaml", "seed: 0\n"), "report run gone", 2, f"gone {NO_RUN}"),
    case("Report", "a configuration that would run code",
         lambda: write("run/config.yaml", "!!python/object/apply:os.mkdir [made]"),
         "report run", 2, "run/config.yaml is damaged"),
    case("Report", "scores that are none", bad_scores, "report run", 3,
         "run: its JSON files say what no page can be made of"),
    case("Replay", "a checkpoint", model, "replay checkpoint", 4, "checkpoint is not a kept step"),
]  # fmt: skip
