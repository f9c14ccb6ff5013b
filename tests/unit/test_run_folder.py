"""Stages are run once, damaged files are noticed, other settings refused."""

from pathlib import Path

import pytest

from daal.config import Config
from daal.errors import ConfigError
from pipelines.run_folder import RunFolder


def stage(folder: RunFolder, calls: list[str], content: bytes = b"x" * 50) -> bytes:
    def make() -> dict[str, bytes]:
        calls.append("made")
        return {"a/b.bin": content}

    return folder.once("a", ["a/b.bin"], make, lambda contents: contents["a/b.bin"])


def test_once__runs_once_and_reads_after(tmp_path: Path) -> None:
    calls: list[str] = []
    assert stage(RunFolder(str(tmp_path)), calls) == b"x" * 50
    assert stage(RunFolder(str(tmp_path)), calls, b"other") == b"x" * 50
    assert calls == ["made"]
    assert [line["stage"] for line in RunFolder(str(tmp_path)).journal()] == ["a"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "journal cut"])
def test_once__damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    calls: list[str] = []
    folder = RunFolder(str(tmp_path))
    stage(folder, calls)
    file, journal = tmp_path / "a/b.bin", tmp_path / "journal.jsonl"
    match damage:
        case "truncated":
            file.write_bytes(b"x" * 49)
        case "flipped":
            file.write_bytes(b"x" * 49 + b"y")
        case "deleted":
            file.unlink()
        case _:
            journal.write_text(journal.read_text()[:-10])
    assert stage(RunFolder(str(tmp_path)), calls) == b"x" * 50
    assert calls == ["made", "made"]


def test_once__a_stage_that_fails_leaves_no_line(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))

    def fail() -> dict[str, bytes]:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        folder.once("a", ["a/b.bin"], fail, dict)
    assert folder.journal() == []
    assert not (tmp_path / "a").exists()


def test_a_journal_line_after_a_cut_one_still_counts(tmp_path: Path) -> None:
    calls: list[str] = []
    (tmp_path / "journal.jsonl").write_text('{"stage": "ear')
    stage(RunFolder(str(tmp_path)), calls)
    stage(RunFolder(str(tmp_path)), calls)
    assert calls == ["made"]


def test_keep_config__names_each_difference(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    config = Config()
    folder.keep_config(config)
    folder.keep_config(config.model_copy(update={"out": "elsewhere"}))
    folder.keep_config(
        config.model_copy(update={"ray": config.ray.model_copy(update={"data_cpus": 7})})
    )
    cluster = config.cluster.model_copy(update={"eps": 0.7})
    with pytest.raises(ConfigError, match=r"cluster\.eps was 0\.5 and is 0\.7"):
        folder.keep_config(config.model_copy(update={"cluster": cluster}))


def test_a_uri_works_like_a_path(tmp_path: Path) -> None:
    calls: list[str] = []
    stage(RunFolder(f"file://{tmp_path}"), calls)
    stage(RunFolder(str(tmp_path)), calls)
    assert calls == ["made"]


def test_a_place_that_cannot_be__is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be used as a run folder"):
        RunFolder(str(tmp_path / "file" / "run"))
