"""A run that is continued: with more iterations, other workers, images that moved or were added."""

import hashlib
import json
import shutil

import pytest
from tiny_run import changed, tiny

from daal.errors import ConfigError
from pipelines.commands.run import run_adaptation
from pipelines.run.folder import RunFolder

pytestmark = pytest.mark.ray

# They say when and where the run was made, or by which of its commands.
OF_THE_MAKING = (
    "checkpoint.json",
    "config.yaml",
    "journal.jsonl",
    "metrics.jsonl",
    "summary.json",
    "tracking.json",
)


def results(out):
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name not in OF_THE_MAKING and "tensorboard" not in file.parts
    }


def stages(out):
    return [line["stage"] for line in RunFolder(str(out)).journal()]


def test_more_iterations__are_those_of_a_run_that_had_them_from_the_start(
    ray_cluster, tiny_world, tmp_path, capsys
):
    world = shutil.copytree(tiny_world, tmp_path / "world")
    settings = ("select=silhouette", "report=false")
    whole = tiny(world, tmp_path / "whole", *settings, "iterations=2")
    run_adaptation(whole, quiet=True)
    short = tiny(world, tmp_path / "longer", *settings, "iterations=1")
    run_adaptation(short, quiet=True)
    begun = stages(tmp_path / "longer")

    # Its images have moved in the meantime.
    shutil.move(world, tmp_path / "moved")
    longer = tiny(tmp_path / "moved", tmp_path / "longer", *settings, "iterations=2")
    run_adaptation(longer, quiet=True)
    assert [stage for stage in stages(tmp_path / "longer")[len(begun) :]
            if stage != "iteration-01/extract-result"] == [
        "iteration-02/estimate", "iteration-02/train", "iteration-01/drop", "iteration-02/extract",
        "iteration-02/evaluate", "final/estimate",
    ]  # fmt: skip
    assert results(tmp_path / "longer") == results(tmp_path / "whole")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())
                 for name in ("longer", "whole")]  # fmt: skip
    assert {**summaries[0], "seconds": 0} == {**summaries[1], "seconds": 0}
    with pytest.raises(ConfigError, match="has begun iteration 2, and iterations is 1"):
        run_adaptation(short, quiet=True)

    # A finished run needs its images no more; and what is new among them is said.
    finished = stages(tmp_path / "longer")
    shutil.move(tmp_path / "moved", tmp_path / "away")
    run_adaptation(longer, quiet=True)
    shutil.move(tmp_path / "away", tmp_path / "moved")
    train = tmp_path / "moved" / "target" / "bounding_box_train"
    shutil.copy(next(train.iterdir()), train / "0300_c1s1_000000_00.jpg")
    capsys.readouterr()
    run_adaptation(longer, quiet=True)
    assert "1 image is new" in " ".join(capsys.readouterr().err.split())
    assert stages(tmp_path / "longer") == finished


@pytest.mark.nightly  # unit/test_report_parts.py has the doubt
def test_other_workers__are_said_and_recorded(ray_cluster, tiny_world, tmp_path, capsys):
    config = tiny(tiny_world, tmp_path / "run", "ray.num_workers=2", "report=false")
    run_adaptation(config, quiet=True, pretrain_only=True)
    assert "is trained on" not in capsys.readouterr().err
    config = changed(config, "ray.num_workers=1")
    run_adaptation(config, quiet=True)
    said = "iteration-01 is trained on 1 worker on CPUs, where pretrain/train was on 2 workers"
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = RunFolder(str(tmp_path / "run")).journal()
    workers = {line["stage"]: line["workers"] for line in lines if "workers" in line}
    assert workers == {"pretrain/train": 2, "iteration-01/train": 1}
    run_adaptation(config.model_copy(update={"ray": config.ray}), quiet=True)
    assert "is trained on" not in capsys.readouterr().err, "a finished run trains nothing"
