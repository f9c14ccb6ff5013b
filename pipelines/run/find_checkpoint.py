"""Which checkpoint is meant: a checkpoint folder itself, or the model that a run has come to."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daal.errors import CheckpointError
from pipelines.run.artefacts import checkpoint_files
from pipelines.run.folder import JOURNAL, RunFolder

ITERATION = re.compile(r"iteration-\d{2,4}")


@contextmanager
def checkpoint_of(where: str) -> Iterator[tuple[Path, str]]:
    """A local checkpoint folder, and what to call it: `where`, a run's folder (or URI), or one of
    its stages' (runs/mine/iteration-02), or a checkpoint's.

    Of a run it is the iteration that was selected; while it isn't finished, the last one that is.

    Raises CheckpointError if `where` is a run without a model yet, or no run; ConfigError for a URI
    that no file system has.
    """
    if "://" not in where:
        folder = Path(where)
        if (folder / JOURNAL).is_file():
            stage = result_of(RunFolder(where, create=False))
            yield folder / stage / "checkpoint", f"{where}: {stage}"
        else:
            inside = folder / "checkpoint"
            folder = inside if inside.is_dir() else folder
            yield folder, str(folder)
        return
    run = RunFolder(where, create=False)
    if not run.exists(JOURNAL):
        raise CheckpointError(
            f"{where} is no run folder ({JOURNAL} isn't there); give a run's URI, or a local "
            "checkpoint folder."
        )
    stage = result_of(run)
    with tempfile.TemporaryDirectory() as scratch:
        for name in checkpoint_files(f"{stage}/checkpoint"):
            (Path(scratch) / Path(name).name).write_bytes(run.read(name))
        yield Path(scratch), f"{where}: {stage}"


def result_of(run: RunFolder) -> str:
    """The stage (iteration-03, or pretrain) whose model is a run's result so far."""
    if run.exists("summary.json"):
        try:
            selected = json.loads(run.read("summary.json"))["selected"]
        except (ValueError, KeyError, TypeError):
            selected = None  # the journal knows as much, but for the choice
        if isinstance(selected, str) and ITERATION.fullmatch(selected):
            return selected
    trained = [line["stage"].removesuffix("/train") for line in run.journal()
               if line["stage"].endswith("/train")]  # fmt: skip
    models = [stage for stage in trained if stage == "pretrain" or ITERATION.fullmatch(stage)]
    if not models:
        raise CheckpointError(
            f"{run.uri} has no trained model yet; go on with the run, or give a checkpoint folder."
        )
    return models[-1]
