"""Bad input of every kind, through the real command: what is said, and with which exit code.

Nothing here starts Ray but the last test. The list of all cases is docs/bad_input.md, which this
file writes (DAAL_WRITE_DOCS=1) or compares.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
import bad_configs
import bad_features
import bad_folders
import bad_images
import bad_verbs
import bad_weights
import pytest
from bad_input import PICTURE, VICTIM, Case, Outcome, as_markdown, check, market, run
from pydantic import BaseModel

from daal.config import Config, DatasetConfig
from daal.errors import ConfigError, DataError
from daal.load_config import load_config
from pipelines.images.ingest import ingest

PARTS = (bad_configs, bad_folders, bad_images, bad_features, bad_weights, bad_verbs)
CASES: list[Case] = [case for part in PARTS for case in part.CASES]
LIST = Path(__file__).parents[2] / "docs" / "bad_input.md"

OutcomeOf = Callable[[Case], Outcome]


def named(case: Case) -> str:
    return f"{case.subject}: {case.name}"


@pytest.fixture(scope="module")
def outcome_of(tmp_path_factory: pytest.TempPathFactory) -> OutcomeOf:
    """Each case is run once, for its own test and for the list."""
    import pipelines.tools.extract_folder
    import pipelines.tools.label_file
    import pipelines.tools.validate  # noqa: F401  so that no case pays for the imports

    return cache(lambda case: run(case, tmp_path_factory.mktemp("case")))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_bad_input(case: Case, outcome_of: OutcomeOf) -> None:
    import ray

    was_running = ray.is_initialized()
    check(case, outcome_of(case))
    assert ray.is_initialized() == was_running


def test_the_list_is_up_to_date(outcome_of: OutcomeOf) -> None:
    assert len({named(case) for case in CASES}) == len(CASES) >= 200
    text = as_markdown([(case, outcome_of(case)) for case in CASES])
    if os.environ.get("DAAL_WRITE_DOCS"):
        LIST.write_text(text, encoding="utf-8")
    assert LIST.read_text(encoding="utf-8") == text, (
        "docs/bad_input.md is old: DAAL_WRITE_DOCS=1 pytest tests/faults/test_bad_input.py"
    )


@pytest.mark.parametrize(
    "name",
    [
        "Settings: cluster.epz=0.4",
        "Images: PNG of 3,600 million pixels by its header",
    ],
)
def test_a_real_process_says_the_same(name: str, tmp_path: Path, outcome_of: OutcomeOf) -> None:
    case = next(case for case in CASES if named(case) == name)
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        arguments = case.make()
    finally:
        os.chdir(here)
    result = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == case.code
    assert result.stderr.replace(str(tmp_path), "DIR") == outcome_of(case).err


def settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def beyond(limit: Any) -> tuple[float, str] | None:
    """The nearest whole number that a limit refuses, and what pydantic calls the limit."""
    match limit:
        case annotated_types.Ge(ge=bound):
            return bound - 1, f"greater than or equal to {bound}"
        case annotated_types.Gt(gt=bound):
            return bound, f"greater than {bound}"
        case annotated_types.Le(le=bound):
            return bound + 1, f"less than or equal to {bound}"
        case annotated_types.Lt(lt=bound):
            return bound, f"less than {bound}"
    return None


def test_every_limit_is_named_with_its_setting() -> None:
    found = [(key, *out) for key, field in settings() for out in map(beyond, field.metadata) if out]
    assert len(found) > 50
    for key, value, rule in found:
        with pytest.raises(ConfigError) as refused:
            load_config(None, [f"{key}={value}"])
        for words in (f"{key}={value} should be {rule}", f'from override "{key}={value}"'):
            assert words in str(refused.value)


def test_every_choice_is_named_with_its_setting() -> None:
    for key, field in settings():
        kinds = (field.annotation, *get_args(field.annotation))
        if any(get_origin(kind) is Literal for kind in kinds):
            with pytest.raises(ConfigError, match=re.escape(f"{key}='nonsense' should")):
                load_config(None, [f"{key}=nonsense"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize(
    ("forbidden", "says"),
    [
        (VICTIM, "the file can't be read (Permission denied): 1"),
        ("target/query", "target/query can't be read (Permission denied)"),
        ("target", "target"),
    ],
)
def test_what_may_not_be_read(forbidden: str, says: str, tmp_path: Path) -> None:
    def make() -> list[str]:
        market("source")
        market("target")
        os.chmod(forbidden, 0)
        return ["validate", "demo", "source.root=source", "target.root=target"]

    case = Case("Permissions", forbidden, make, 3, (says,))
    try:
        check(case, run(case, tmp_path))
    finally:
        os.chmod(tmp_path / forbidden, 0o700)


def test_a_run_sets_aside_what_validate_names(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader on Ray and `daal validate` give one image the same reason."""
    monkeypatch.chdir(tmp_path)
    root = Path(market("target"))
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


def test_the_check_can_fail(tmp_path: Path) -> None:
    def case(code: int, *says: str, recipe: str = "x") -> Case:
        return Case("", "", lambda: ["config", "show", recipe], code, says)

    right = case(2, "recipe")
    outcome = run(right, tmp_path)
    check(right, outcome)
    for wrong, missed in (
        (case(3, "recipe"), "exit code 2"),
        (case(2, "camera"), "not said: camera"),
        (case(2), "nothing was to be said"),
    ):
        with pytest.raises(AssertionError, match=missed):
            check(wrong, outcome)
    for change, missed in (
        ({"left": {"made"}}, "files were made"),
        ({"err": "Traceback"}, "traceback: "),
        ({"err": "error: x is wrong"}, "no remedy"),
        ({"seconds": 100}, "took 100 s"),
    ):
        with pytest.raises(AssertionError, match=missed):
            check(right, replace(outcome, **change))
