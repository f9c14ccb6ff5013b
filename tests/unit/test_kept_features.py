"""Which iterations are scored, which features stay in the run folder, and that a run resumes when
some are gone. Workers are replaced by functions of a few numbers."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from drawn_run import feature_blocks
from rich.console import Console

import pipelines.adapt as adapt_module
from cluster.quality import cluster_quality
from daal.errors import ConfigError, StorageError
from daal.evaluation import evaluate
from daal.load_config import load_config
from pipelines.adapt import Adaptation
from pipelines.images.ingest import Images
from pipelines.run.feature_files import query_and_gallery
from pipelines.run.folder import RunFolder, entry_of
from pipelines.run.kept_config import keep_config
from pipelines.run.results import Clusters
from pipelines.show.progress import Progress
from pipelines.training.fit import Trainer
from pipelines.workers.resources import Resources

SPLITS = ["train"] * 24 + ["query"] * 6 + ["gallery"] * 12
PIDS = np.arange(42) % 6 + 1
CAMIDS = np.arange(42) // 6
TABLE = pa.table({
    "path": [f"{n}.jpg" for n in range(42)], "pid": PIDS, "camid": CAMIDS, "split": SPLITS,
    "domain": ["target"] * 42,
})  # fmt: skip
Run = Callable[..., dict[str, Any]]


class Machine:
    """What the workers would do. `rounding` is of the machine that features are made on."""

    def __init__(self) -> None:
        self.extracted: list[tuple[str, int]] = []
        self.rounding = 0.0

    def extract(self, stage, images, config, weights, workers, pixels, rows, folder):
        self.extracted.append((stage, len(rows)))
        rng = np.random.default_rng(int(weights["state"][0]))
        features = np.eye(8)[PIDS] + 0.5 * rng.standard_normal((42, 8)) + self.rounding
        blocks = feature_blocks(folder, TABLE.take(rows), features.astype(np.float32)[rows])
        for name, data in blocks.items():
            workers.folder.write(name, data)
        return {name: entry_of(data) for name, data in blocks.items()}

    def train(self, trainer, *, stage, iteration, source, target, features, pseudo_labels_NP,
              start) -> dict[str, np.ndarray]:  # fmt: skip
        found = abs(features.read()).sum() * 1000 + iteration
        return {"state": np.array([found], np.int64)}

    def label(self, given, config, earlier, workers, on_progress) -> tuple[np.ndarray, Clusters]:
        labels = given.pids_T // 2
        silhouette = [0.1, 0.2, 0.9, 0.3, 0.4, 0.5][len(earlier)]  # that of iteration 2 is best
        quality = cluster_quality(labels).as_dict()
        return labels[:, None], Clusters(eps=[0.5], silhouette=silhouette, **quality)

    def score(self, stage, images, features, workers):
        columns = features.of(np.arange(42)).read(), PIDS, CAMIDS
        sides = query_and_gallery("it", np.array(SPLITS))
        return evaluate(*(column[rows] for rows in sides for column in columns))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    monkeypatch.setattr(adapt_module, "extract", made.extract)
    monkeypatch.setattr(adapt_module, "label_images", made.label)
    monkeypatch.setattr(adapt_module, "evaluate_features", made.score)
    monkeypatch.setattr(Trainer, "adapt", lambda self, **given: made.train(self, **given))
    monkeypatch.setattr(Trainer, "untrained", lambda self: {"state": np.array([7], np.int64)})
    monkeypatch.setattr(Adaptation, "ingest", lambda self, domain: Images(TABLE, None))
    return made


@pytest.fixture
def run(machine: Machine, tmp_path: Path) -> Run:
    def adapted(*settings: str, name: str = "run", iterations: int = 4) -> dict[str, Any]:
        config = load_config(None, [
            f"out={tmp_path}/{name}", 'source.root=""', "target.root=there", "adapt.batch_source=0",
            f"iterations={iterations}", *settings,
        ])  # fmt: skip
        folder = RunFolder(config.out)
        keep_config(folder, config)
        machine.extracted.clear()
        progress = Progress(console=Console(file=io.StringIO()))
        resources = Resources(1, 1, 1, False, 1, 1, 1, 0)
        return Adaptation(config, folder, resources, progress).adapt()

    return adapted


def features(folder: Path) -> set[str]:
    return {str(found.relative_to(folder)) for found in folder.rglob("*features")}


def stages(folder: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (folder / "journal.jsonl").open()]


def weights(folder: Path) -> dict[str, bytes]:
    return {file.parts[-3]: file.read_bytes() for file in folder.rglob("weights.safetensors")}


@pytest.mark.parametrize(
    ("every", "select", "scored", "num_extracted"),
    [
        (1, "last", [1, 2, 3, 4], [42, 42, 42, 42, 42]),
        (2, "last", [2, 4], [42, 24, 42, 24, 42]),
        (0, "last", [4], [42, 24, 24, 24, 42]),
        # The result's query and gallery images are extracted once it is known.
        (3, "silhouette", [2, 3, 4], [42, 24, 24, 42, 42, 42]),
    ],
)
def test_what_is_scored__and_kept(
    run: Run, machine: Machine, tmp_path: Path, every: int, select: str, scored: list[int],
    num_extracted: list[int],
) -> None:  # fmt: skip
    settings = (f"evaluate_every={every}", f"select={select}")
    summary = run(*settings)
    assert [size for _, size in machine.extracted] == num_extracted
    rows = summary["iterations"]
    assert [n for n, row in enumerate(rows, 1) if "map" in row] == scored
    assert summary["direct_transfer"] and summary["adapted"]
    result = summary["selected"]
    assert result == ("iteration-02" if select == "silhouette" else "iteration-04")
    assert features(tmp_path / "run") == {
        f"{name}/features" for name in ("pretrain", "iteration-04", result)
    }
    journal = stages(tmp_path / "run")
    assert len(set(journal)) == len(journal)
    again = run(*settings)
    assert machine.extracted == [] and stages(tmp_path / "run") == journal
    assert again == summary

    # The same weights, labels and scores as when everything is scored and kept.
    whole = run(f"select={select}", "keep_features=true", name="whole")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert {**whole["adapted"]} == summary["adapted"]
    assert all(row["map"] == whole["iterations"][n - 1]["map"]
               for n, row in enumerate(rows, 1) if "map" in row)  # fmt: skip
    assert len(features(tmp_path / "whole")) == 5


def test_features_that_are_gone__are_made_again_if_a_stage_has_to_be_repeated(
    run: Run, machine: Machine, tmp_path: Path
) -> None:
    run()
    before = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/iteration-02/checkpoint")
    run()
    assert weights(tmp_path / "run") == before
    assert machine.extracted == [("iteration-01/extract", 42)]
    assert "iteration-01/features" not in features(tmp_path / "run")


def test_features_that_come_out_differently__what_followed_from_them_is_repeated(
    run: Run, machine: Machine, tmp_path: Path
) -> None:
    run()
    shutil.rmtree(tmp_path / "run/iteration-02/checkpoint")
    machine.rounding = 1.0
    with pytest.raises(StorageError, match="iteration-01/extract was made again, and differs"):
        run()
    run()
    later = [name for name, _ in machine.extracted]
    assert later == ["iteration-02/extract", "iteration-03/extract", "iteration-04/extract"]
    run()
    assert machine.extracted == []


def test_a_run_of_an_earlier_release__whose_features_are_one_file__is_continued(
    run: Run, machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run("keep_features=true", iterations=2)
    wanted = weights(folder)
    shutil.rmtree(folder)
    run("keep_features=true", iterations=1)
    lines = [json.loads(line) for line in (folder / "journal.jsonl").open()]
    for line in lines:
        if line["stage"].endswith("/extract"):
            (name,) = line["files"]
            one_file = name.replace("/00000", "")
            shutil.move(folder / name, folder / one_file)
            (folder / name).parent.rmdir()
            line["files"] = {one_file: line["files"][name]}
    (folder / "journal.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    run("keep_features=true", iterations=2)
    assert machine.extracted == [("iteration-02/extract", 42)]
    assert weights(folder) == wanted
    assert (folder / "iteration-01/features.parquet").is_file()


def test_a_damaged_block__is_named__and_made_again_once_it_is_gone(
    run: Run, machine: Machine, tmp_path: Path
) -> None:
    run("keep_features=true", iterations=1)
    block = tmp_path / "run/iteration-01/features/00000.parquet"
    data = bytearray(block.read_bytes())
    data[50] ^= 1
    block.write_bytes(data)
    with pytest.raises(StorageError, match="features/00000.parquet is damaged.* delete it"):
        run("keep_features=true", iterations=2)
    assert machine.extracted == []
    block.unlink()
    run("keep_features=true", iterations=2)
    assert machine.extracted == [("iteration-01/extract", 42), ("iteration-02/extract", 42)]


def test_how_often_scores_are_made__may_not_change(run: Run) -> None:
    run()
    run("keep_features=true")
    with pytest.raises(ConfigError, match="evaluate_every was 1 and is 0"):
        run("evaluate_every=0")
