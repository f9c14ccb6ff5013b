"""What `daal export`, `search`, `report`, `replay` and `doctor` are given."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from bad_features import parquet
from bad_input import PICTURE, Case, encoded, picture, write
from bad_weights import saved

from daal import checkpoint
from daal.load_config import load_config
from daal.nn.network import DaalNetwork

CHECKPOINT, QUERY = "checkpoint", "query.png"
SETTINGS = ["input.height=32", "input.width=16", "network.backbone=resnet18",
            "network.weights=none", "mixed_precision=false"]  # fmt: skip
TRAINED = '{"stage": "pretrain/train", "seconds": 1, "files": {}}\n'

Spoil = Callable[[], object]


@cache
def model_folder() -> str:
    """A whole checkpoint of a small model, made once: cases link to it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    config = load_config(None, SETTINGS)
    torch.manual_seed(0)
    network = DaalNetwork(config.network)
    metadata = {"config": config.model_dump(mode="json")}
    checkpoint.save(Path(folder, CHECKPOINT), network.state_dict(), metadata)
    return f"{folder}/{CHECKPOINT}"


def model() -> None:
    os.symlink(model_folder(), CHECKPOINT)


def nothing() -> None:
    pass


def run_folder(**files: str | bytes) -> Spoil:
    """`run`, with these files (`_` for the dot of a name)."""
    return lambda: [write(f"run/{name.replace('_', '.')}", data) for name, data in files.items()]


def one(
    verb: str, name: str, make: Spoil, arguments: list[str], *says: str, code: int, model: str = ""
) -> Case:
    def arguments_of() -> list[str]:
        make()
        return [verb, *([model] if model else []), *arguments]

    return Case(verb.capitalize(), name, arguments_of, code, says)


def exports() -> list[Case]:
    def case(
        name: str, make: Spoil, out: str, *says: str, code: int = 2, model: str = CHECKPOINT,
        format: str = "safetensors",
    ) -> Case:  # fmt: skip
        arguments = ["--format", format, "--out", out]
        return one("export", name, make, arguments, *says, code=code, model=model)

    good = "m.safetensors"
    return [
        case("unknown format", model, "m.tflite", "--format tflite is unknown", format="tflite"),
        case("a name of another format", model, "m.pt", "--out m.pt",
             "must end in .pt2", format="torch"),
        case("a run without a model yet", run_folder(journal_jsonl=""), good,
             "run has no trained model yet", code=4, model="run"),
        case("a configuration that is no checkpoint's", lambda: saved({}), good,
             "checkpoint is not a checkpoint of a run", code=4),
    ]  # fmt: skip


def searches() -> list[Case]:
    def case(
        name: str, make: Spoil, *says: str, code: int = 3, query: str = QUERY,
        gallery: str = "gallery", options: tuple[str, ...] = (),
    ) -> Case:  # fmt: skip
        def world() -> None:
            model()
            write(QUERY, encoded(picture(1), "PNG"))
            write("gallery/a.jpg")
            make()

        return one("search", name, world, [query, gallery, *options], *says, code=code,
                   model=CHECKPOINT)  # fmt: skip

    def features(
        channels: int = 512, path: str | None = "a.jpg", value: float = 1.0
    ) -> Callable[[], object]:
        table = {"feature": np.full((1, channels), value, np.float32).tolist()}
        table |= {} if path is None else {"path": [path]}
        return lambda: write("f.parquet", parquet(table))

    file = ("--features", "f.parquet")
    return [
        case("no such query", nothing, "the query image gone.jpg", "there is no such file",
             query="gone.jpg"),
        case("a query cut off", lambda: write("q.jpg", PICTURE[:-200]),
             "q.jpg can't be used: the image data is cut off", query="q.jpg"),
        case("no such gallery", nothing, "the gallery gone isn't a folder", gallery="gone"),
        case("a gallery on the Web", nothing, "s3://bucket/x is a URI", gallery="s3://bucket/x"),
        case("a gallery without images", lambda: write("empty/notes.txt", "no image"),
             "There are no images in empty", gallery="empty"),
        case("unknown layout", nothing, "--layout ImageNet is unknown", code=2,
             options=("--layout", "ImageNet")),
        case("a picture that can't be drawn", nothing, "--out m.gif", "must end in one of .png",
             code=2, options=("--out", "m.gif")),
        case("no such features", nothing, "f.parquet is not a features file: it doesn't exist",
             options=file),
        case("features of other channels", features(8),
             "f.parquet has features of 8 channels, and this model's have 512", options=file),
        case("features of unknown images", features(path=None),
             "f.parquet does not say which images its features are of", options=file),
        case("features of other images", features(path="gone.jpg"),
             "(e.g. 'gone.jpg') are not in gallery", options=file),
        case("features of another model", features(value=0.0),
             "f.parquet was not made by this checkpoint of these images", options=file),
    ]  # fmt: skip


def reports() -> list[Case]:
    def case(
        name: str, make: Spoil, *says: str, runs: tuple[str, ...] = ("run",), code: int = 2
    ) -> Case:
        return one("report", name, make, [*runs], *says, code=code)

    no_run = "is not a run folder: there is no config.yaml in it"
    return [
        case("no such run", nothing, f"gone {no_run}", runs=("gone",)),
        case("a comparison with what is no run", run_folder(config_yaml="seed: 0\n"),
             f"gone {no_run}", runs=("run", "gone")),
        case("a configuration that would run code",
             run_folder(config_yaml="!!python/object/apply:os.mkdir [made]"),
             "run/config.yaml is damaged"),
        case("a configuration of a newer daal", run_folder(config_yaml="sparkle: 1\n"),
             '"sparkle" is not a known key'),
        case("scores that are none",
             run_folder(config_yaml="seed: 0\n", journal_jsonl=TRAINED,
                        summary_json='{"selected": 7}', **{"pretrain/evaluation_json": "{}"}),
             "run: its JSON files say what no page can be made of", code=3),
    ]  # fmt: skip


def others() -> list[Case]:
    settings = "is not KEY=VALUE"
    replay = partial(one, "replay", code=4)
    return [
        replay("no such folder", nothing, ["gone"], "gone/checkpoint.json doesn't exist"),
        replay("a checkpoint", model, [CHECKPOINT], "checkpoint is not a kept step"),
        one("doctor", "a recipe", nothing, ["demo"], f'"demo" {settings}', code=2),
    ]  # fmt: skip


CASES = [*exports(), *searches(), *reports(), *others()]
