"""Which checkpoint is meant: a checkpoint folder itself, or the model that a run has come to."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daal.errors import CheckpointError
from pipelines.run.artefacts import checkpoint_files
from pipelines.run.folder import JOURNAL, RunFolder
from pipelines.run.stages import Stage


@contextmanager
def checkpoint_of(where: str) -> Iterator[tuple[Path, str]]:
    """A local checkpoint folder, and what to call it: `where`, a run's folder (or URI), or one of
    its stages' (runs/mine/iteration-02), or a checkpoint's.

    A run's checkpoint is that of the selected iteration, or of the last finished one until then.

    Raises CheckpointError if `where` is a run without a model yet, or no run; ConfigError for a URI
    that no file system has.
    """
    if "://" not in where:
        folder = Path(where)
        if (folder / JOURNAL).is_file():
            model = result_of(RunFolder(where, create=False))
            yield folder / model.file("checkpoint"), f"{where}: {model}"
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
    model = result_of(run)
    with tempfile.TemporaryDirectory() as scratch:
        for name in checkpoint_files(model.file("checkpoint")):
            (Path(scratch) / Path(name).name).write_bytes(run.read(name))
        yield Path(scratch), f"{where}: {model}"


def result_of(run: RunFolder) -> Stage:
    """The model (an iteration's, or pretraining's) that is a run's result so far."""
    if run.exists("summary.json"):
        try:
            selected = Stage.parse(json.loads(run.read("summary.json"))["selected"])
            if selected and selected.kind == "iteration" and not selected.part:
                return selected
        except (ValueError, KeyError, TypeError):
            pass  # the journal knows as much, but for the choice
    stages = [Stage.parse(line["stage"]) for line in run.journal()]
    models = [
        stage.model
        for stage in stages
        if stage and stage.part == "train" and stage.kind in ("pretrain", "iteration")
    ]
    if not models:
        raise CheckpointError(
            f"{run.uri} has no trained model yet; continue the run, or give a checkpoint folder."
        )
    return models[-1]
