"""Stages are run once, damaged files are noticed, other settings refused."""

import subprocess
import sys

import pytest
import yaml
from tiny_run import changed

from daal.config import Config
from daal.errors import ConfigError, StorageError
from daal.load_config import load_config
from pipelines.report.facts import read_facts
from pipelines.run.folder import RunFolder
from pipelines.run.kept_config import keep_config


def stage(folder, calls, content=b"x" * 50):
    def make():
        calls.append("made")
        return {"a/b.bin": content}

    return folder.once("a", ["a/b.bin"], make)["a/b.bin"]


def test_once__runs_once_and_reads_after__by_a_uri_too(tmp_path):
    calls = []
    assert stage(RunFolder(str(tmp_path)), calls) == b"x" * 50
    assert stage(RunFolder(f"file://{tmp_path}"), calls, b"other") == b"x" * 50
    assert calls == ["made"]
    assert [line["stage"] for line in RunFolder(str(tmp_path)).journal()] == ["a"]


def test_after_a_crash_amid_a_line__the_stage_is_made_again__and_its_new_line_counts(tmp_path):
    calls = []
    stage(RunFolder(str(tmp_path)), calls)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text()[:-10])
    for _ in range(2):
        stage(RunFolder(str(tmp_path)), calls)
    assert calls == ["made", "made"]


def test_keep_config__names_each_difference(tmp_path):
    folder = RunFolder(str(tmp_path))
    config = Config()
    keep_config(folder, config)
    keep_config(folder, config.model_copy(update={"out": "elsewhere"}))
    keep_config(folder, changed(config, "ray.data_cpus=7"))
    with pytest.raises(ConfigError, match=r"cluster\.eps was None and is 0\.7"):
        keep_config(folder, changed(config, "cluster.eps=0.7"))


@pytest.mark.parametrize("release", ["0.1", "this"])
@pytest.mark.parametrize(("workers", "batch"), [(3, 63), (1, 24)])
def test_keep_config__is_read_on_its_own__whatever_the_workers(tmp_path, workers, batch, release):
    config = load_config(None, [
        f"out={tmp_path}/run", f"ray.num_workers={workers}", f"pretrain.batch_source={batch}",
        f"adapt.batch_source={batch}", f"adapt.batch_target={batch}",
        f"accumulate={8 if batch == 24 else 1}",
    ])  # fmt: skip
    run = RunFolder(config.out)
    keep_config(run, config)
    file = tmp_path / "run/config.yaml"
    if release == "0.1":
        values = yaml.safe_load(file.read_text())
        del values["ray"]
        file.write_text(yaml.safe_dump(values))
    assert read_facts(run).config.pretrain.batch_source == batch
    keep_config(RunFolder(config.out), config)
    keep_config(RunFolder(config.out), config)
    assert load_config(file).ray.num_workers == workers, "it is a recipe, too"


def test_keep_config__of_a_damaged_file(tmp_path):
    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        keep_config(RunFolder(str(tmp_path)), Config())


def test_keep_config__iterations_may_grow__and_shrink_to_those_begun(tmp_path):
    def given(iterations):
        keep_config(RunFolder(str(tmp_path)), Config(iterations=iterations))

    given(2)
    for number in (1, 2):
        stage = f"iteration-{number:02d}/train"
        RunFolder(str(tmp_path)).once(stage, ["w"], lambda: {"w": b"w"})
    (tmp_path / "summary.json").write_text("{}")
    given(2)
    assert (tmp_path / "summary.json").exists()
    given(5)
    assert not (tmp_path / "summary.json").exists(), "a run with more to do isn't finished"
    given(3)
    with pytest.raises(ConfigError, match="has begun iteration 2, and iterations is 1"):
        given(1)
    assert load_config(tmp_path / "config.yaml").iterations == 3


def two_stages(folder, calls, first):
    folder.once("first", ["first.bin"], lambda: _made(calls, "first", first))
    folder.once("score", ["score.bin"], lambda: _made(calls, "score", b"s"), leads_on=False)
    folder.once("second", ["second.bin"], lambda: _made(calls, "second", b"2"))


def _made(calls, name, content):
    calls.append(name)
    return {f"{name}.bin": content}


def test_once__what_follows_from_another_result_is_made_again(tmp_path):
    """A first stage that comes out differently the second time, as with another world size."""
    calls = []
    two_stages(RunFolder(str(tmp_path)), calls, b"1")
    (tmp_path / "score.bin").unlink()
    two_stages(RunFolder(str(tmp_path)), calls, b"1")
    assert calls == ["first", "score", "second", "score"], "nothing follows from a score"
    (tmp_path / "first.bin").unlink()
    two_stages(RunFolder(str(tmp_path)), calls, b"1")
    assert calls[4:] == ["first"], "the same bytes lead to the same"
    (tmp_path / "first.bin").unlink()
    two_stages(RunFolder(str(tmp_path)), calls, b"other")
    assert calls[5:] == ["first", "score", "second"]
    two_stages(RunFolder(str(tmp_path)), calls, b"other")
    assert len(calls) == 8


def test_a_branch__holds_when_the_main_line_grows(tmp_path):
    calls = []

    def run(*line):
        folder = RunFolder(str(tmp_path))
        folder.once("images", ["images.bin"], lambda: _made(calls, "images", b"i"))
        inputs = folder.inputs
        for name in line:
            folder.once(name, [f"{name}.bin"], lambda: _made(calls, name, b"x"))  # noqa: B023
        folder.inputs = inputs
        folder.once("bound", ["bound.bin"], lambda: _made(calls, "bound", b"b"))

    run("first")
    run("first", "second")
    assert calls == ["images", "first", "bound", "second"]


def test_claimed__by_one_process_at_a_time__and_free_when_it_is_killed(tmp_path):
    code = (
        "import sys, time; from pipelines.run.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).claimed():\n    print('mine', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(StorageError, match="in use by another daal"):
            with RunFolder(str(tmp_path)).claimed():
                pass
    finally:
        holder.kill()
        holder.wait()
    with RunFolder(str(tmp_path)).claimed(), pytest.raises(StorageError, match="in use"):
        with RunFolder(str(tmp_path)).claimed():
            pass


def test_a_login_in_the_uri__is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="has a login in it") as raised:
        RunFolder("s3://KEY:hush@bucket/run")
    assert "hush" not in str(raised.value)
