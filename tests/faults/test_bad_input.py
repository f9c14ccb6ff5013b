"""Bad input of every kind, through the real command: what is said, and with which exit code.

Nothing here starts Ray but the last test. The list of all cases is docs/bad_input.md, which this
file writes (DAAL_WRITE_DOCS=1) or compares.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import bad_configs
import bad_features
import bad_folders
import bad_images
import bad_input
import bad_verbs
import bad_weights
import pytest
import ray
from bad_input import PICTURE, VALIDATE, VICTIM, check, run
from programs import python

from daal.config import Config, DatasetConfig
from daal.errors import DataError
from pipelines.images.ingest import ingest

PARTS = (bad_configs, bad_folders, bad_images, bad_features, bad_weights, bad_verbs)
CASES = [case for part in PARTS for case in part.CASES]
LIST = Path(__file__).parents[2] / "docs" / "bad_input.md"


def named(case):
    return f"{case.subject}: {case.name}"


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory):
    """Each case is run once, for its own test and for the list."""
    return cache(lambda case: run(case, tmp_path_factory.mktemp("case")))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_bad_input(case, outcome_of):
    was_running = ray.is_initialized()
    outcome = outcome_of(case)
    check(case, outcome)
    assert ray.is_initialized() == was_running


def test_the_list_is_up_to_date(outcome_of):
    assert len({named(case) for case in CASES}) == len(CASES)
    text = bad_input.as_markdown([(case, outcome_of(case)) for case in CASES])
    if os.environ.get("DAAL_WRITE_DOCS"):
        LIST.write_text(text, encoding="utf-8")
    assert LIST.read_text(encoding="utf-8") == text, (
        "docs/bad_input.md is old: DAAL_WRITE_DOCS=1 pytest tests/faults/test_bad_input.py; then "
        "look at what has changed"
    )


def test_a_real_process_says_the_same(tmp_path, outcome_of):
    wrong = next(each for each in CASES if named(each) == "Settings: cluster.epz=0.4")
    result = python("-m", "pipelines.cli", *wrong.make(), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (wrong.code, outcome_of(wrong).err)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    ("forbidden", "says"),
    [
        (VICTIM, "the file can't be read (Permission denied): 1"),
        ("target/query", "target/query can't be read (Permission denied)"),
    ],
)
def test_what_may_not_be_read(forbidden, says, tmp_path):
    def make():
        bad_input.both_sets()
        os.chmod(forbidden, 0)

    try:
        outcome = run(bad_input.case("Permissions", forbidden, make, VALIDATE, 3), tmp_path)
        assert outcome.code == 3 and says in outcome.err
    finally:
        os.chmod(tmp_path / forbidden, 0o700)


def test_a_run_sets_aside_what_validate_names(ray_cluster, tmp_path, monkeypatch):
    """The reader on Ray and `daal validate` give one image the same reason."""
    monkeypatch.chdir(tmp_path)
    bad_input.market("target")
    root = Path("target")
    files = sorted((root / "bounding_box_train").glob("*.jpg"))
    spoiled = {
        files[0]: (b"", "the file is empty"),
        files[1]: (bad_images.CUT_OFF, "the image data is cut off"),
        files[2]: (b"words", "not a readable image (JPEG, PNG, BMP, WEBP, TIFF)"),
        files[3]: (bad_images.bomb(), "the image has far more pixels where 67.1 million"),
        files[4]: (PICTURE, "the file has 1,099,512 million bytes where 268 million"),
    }
    for file, (data, _) in spoiled.items():
        file.write_bytes(data)
    os.truncate(files[4], 1 << 40)
    config = Config(target=DatasetConfig(root=str(root)), max_bad_share=0.5)
    images, quarantine = ingest(config, "target")
    assert len(images.table) == 18 - len(spoiled)
    paths = [str(file.relative_to(root)) for file in spoiled]
    assert quarantine["path"].to_pylist() == paths
    for found, (_, reason) in zip(quarantine["reason"].to_pylist(), spoiled.values(), strict=True):
        assert found.startswith(reason)
    with pytest.raises(DataError, match=r"5 of 18 images .* raise max_bad_share"):
        ingest(config.model_copy(update={"max_bad_share": 0.2}), "target")


def test_the_check_can_fail(tmp_path):
    right = bad_input.case("", "", bad_input.nothing, "config show x", 2)
    outcome = run(right, tmp_path)
    check(right, outcome)
    for change, missed in (
        ({"code": 3}, "exit code 3"),
        ({"err": ""}, "0 lines"),
        ({"left": {"made"}}, "files were made"),
        ({"err": "error: x is wrong"}, "no remedy"),
    ):
        with pytest.raises(AssertionError, match=missed):
            check(right, replace(outcome, **change))
