"""Scores of a features file, query against gallery."""

from pathlib import Path

from daal.errors import DataError
from daal.evaluation import EvaluationResult, evaluate
from pipelines.run.feature_files import query_and_gallery, read_features


def evaluate_file(path: Path) -> EvaluationResult:
    """Scores of a features file of `daal extract` or of a run.

    Raises:
        DataError: the file isn't such a file, or nothing in it can be scored.
    """
    given = read_features(path, needed=("split", "pid", "camid"))
    splits, pids, camids = given.splits, given.pids, given.camids
    if splits is None or pids is None or camids is None:
        named = {"split": splits, "pid": pids, "camid": camids}
        absent = ", ".join(name for name, column in named.items() if column is None)
        raise DataError(
            f"{path} can't be scored without {absent}; give a file that daal extract wrote of a "
            "data set with query and gallery."
        )
    rows = query_and_gallery(str(path), splits)
    sides = [column[side] for side in rows for column in (given.features_NC, pids, camids)]
    try:
        scores = evaluate(*sides)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    if scores.num_valid_queries == 0:
        raise DataError(
            f"{path} has no query with an image of the same pid and another camera in its gallery, "
            "so nothing can be scored; correct its pids and camids."
        )
    return scores
