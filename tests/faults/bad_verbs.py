"""What `daal export`, `search`, `report` and `replay` are given."""

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from bad_features import parquet
from bad_input import PICTURE, Case, case, encoded, nothing, picture, write
from tiny_run import save_model

TRAINED = '{"stage": "pretrain/train", "seconds": 1, "files": {}}\n'


@cache
def model_folder() -> tempfile.TemporaryDirectory[str]:
    """A whole checkpoint of a small model, made once: cases link to it."""
    folder = tempfile.TemporaryDirectory()
    save_model(Path(folder.name, "checkpoint"))
    return folder


def model() -> None:
    os.symlink(f"{model_folder().name}/checkpoint", "checkpoint")


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


FROM_FILE = "query.png gallery --features f.parquet"
SEARCHES: list[tuple[str, Callable[[], object], str, int]] = [
    # name, what there is beside model, query and gallery, arguments, exit code
    ("no such query", nothing, "gone.jpg gallery", 3),
    ("a query cut off", lambda: write("q.jpg", PICTURE[:-200]), "q.jpg gallery", 3),
    ("no such gallery", nothing, "query.png gone", 3),
    ("a gallery without images", lambda: write("empty/notes.txt", "none"), "query.png empty", 3),
    ("a gallery in a bucket", nothing, "query.png s3://bucket/people", 3),
    ("a data set in a bucket", nothing, "query.png s3://bucket/m --layout market1501", 3),
    (
        "a gallery in a bucket, and its features",
        features,
        "query.png s3://bucket/people --features f.parquet",
        3,
    ),
    ("unknown layout", nothing, "query.png gallery --layout ImageNet", 2),
    ("a picture that can't be drawn", nothing, "query.png gallery --out m.gif", 2),
    ("features of other channels", lambda: features(8), FROM_FILE, 3),
    ("features of unknown images", lambda: features(path=None), FROM_FILE, 3),
    ("features of other images", lambda: features(path="gone.jpg"), FROM_FILE, 3),
    ("features of another model", lambda: features(value=0.0), FROM_FILE, 3),
]


def search(name: str, make: Callable[[], object], arguments: str, code: int) -> Case:
    def world() -> None:
        model()
        write("query.png", encoded(picture(1), "PNG"))
        write("gallery/a.jpg")
        make()

    return case("Search", name, world, f"search checkpoint {arguments}", code)


CASES = [
    case("Extract", "any images of a bucket", model,
         "extract checkpoint s3://bucket/people --layout any", 3),
    case("Export", "unknown format", model, "export checkpoint --format tflite --out m.tflite", 2),
    case("Export", "a name of another format", model,
         "export checkpoint --format torch --out m.pt", 2),
    case("Export", "a run without a model yet", lambda: write("run/journal.jsonl", ""),
         "export run --format safetensors --out m.safetensors", 4),
    *(search(*row) for row in SEARCHES),
    case("Report", "a comparison with what is no run",
         lambda: write("run/config.yaml", "seed: 0\n"), "report run gone", 2),
    case("Report", "a configuration that would run code",
         lambda: write("run/config.yaml", "!!python/object/apply:os.mkdir [made]"),
         "report run", 2),
    case("Report", "scores that are none", bad_scores, "report run", 3),
    case("Replay", "a checkpoint", model, "replay checkpoint", 4),
]  # fmt: skip
