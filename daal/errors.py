"""What can go wrong for a user, and the exit code each kind ends the command with.

Every message is one sentence that names the thing and the remedy.
"""


class DaalError(Exception):
    """Base of every error meant for the user's eyes; anything else is our bug."""

    exit_code = 1


class ConfigError(DaalError):
    """A recipe or an override is wrong."""

    exit_code = 2


class DataError(DaalError):
    """A data set, an image or a features file can't be used."""

    exit_code = 3


class CheckpointError(DaalError):
    """A checkpoint or weights file is missing, damaged or of another shape."""

    exit_code = 4


class TrainingDiverged(DaalError):
    """A loss or gradient stopped being finite; the weights are those before the step."""

    exit_code = 5


class ClusterError(DaalError):
    """The Ray cluster can't be reached, refuses us, or is too small for the run."""

    exit_code = 6


class LabelError(DaalError):
    """Pseudo-labels can't be made from these features (no cluster, too few images)."""

    exit_code = 7


class StorageError(DaalError):
    """The run folder can't be read or written: a full disk, permissions, an object store."""

    exit_code = 8


def first_line(error: BaseException) -> str:
    """The first line of a third-party exception's message, or its type's name if it is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
