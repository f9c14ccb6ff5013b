"""Features of a set's images in the run folder: blocks of rows, each a Parquet file.

Workers write blocks, and whoever needs some rows reads them where it runs: no process holds all
features unless it computes with all of them. Releases up to 0.1 left one file, which is one block.

Shapes: N rows of a set's table, M of them with features, T that are asked for, C channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from daal.errors import StorageError
from daal.nn.stripes import whole_and_stripes
from pipelines.run import artefacts
from pipelines.run.folder import Entries, RunFolder, entry_of

LEAST_ROWS, MOST_ROWS = 64, 8192  # of a block
NUM_BLOCKS = 64  # at most, where blocks aren't of the most rows


def rows_of_block(num_rows: int) -> int:
    """Rows of each block but the last: a power of 2, by the number of all rows alone."""
    wanted = max(LEAST_ROWS, -(-num_rows // NUM_BLOCKS))
    return min(MOST_ROWS, 1 << (wanted - 1).bit_length())


def block_files(folder: str, num_rows: int) -> list[str]:
    """Names of the blocks of so many rows."""
    return [f"{folder}/{n:05d}.parquet" for n in range(-(-num_rows // rows_of_block(num_rows)))]


@dataclass(frozen=True)
class FeatureBlocks:
    """Where the features of rows of a table are. `files` are in the order of `rows_M`, which
    ascend. Small to ship."""

    folder: RunFolder
    files: Entries
    rows_M: NDArray[np.int64]

    def of(self, rows_T: NDArray[np.int64], part: int = 0, num_stripes: int = 0) -> "SomeFeatures":
        """Features of these rows: all channels, or those of a part of the body
        (`daal.nn.stripes.whole_and_stripes`)."""
        return SomeFeatures(self, rows_T, part, num_stripes)


@dataclass(frozen=True)
class SomeFeatures:
    """`cluster.given_features.StoredFeatures`: features (T, C) of some rows of a table."""

    blocks: FeatureBlocks
    rows_T: NDArray[np.int64]
    part: int
    num_stripes: int

    def __len__(self) -> int:
        return len(self.rows_T)

    def read(self) -> NDArray[np.float32]:
        """The features, float32, in the order of the rows.

        Raises:
            StorageError: a file can't be read, or isn't the one that the journal speaks of.
        """
        blocks, names = self.blocks, sorted(self.blocks.files)
        places_T = np.searchsorted(blocks.rows_M, self.rows_T)
        size = len(blocks.rows_M) if len(names) == 1 else rows_of_block(len(blocks.rows_M))
        number_T = places_T // size
        found_TC = np.empty((0, 0), np.float32)
        for number in np.unique(number_T):
            block_MX = _block(blocks.folder, names[number], blocks.files)
            block_MC = whole_and_stripes(block_MX, self.num_stripes)[self.part]
            if not found_TC.size:
                found_TC = np.empty((len(self), block_MC.shape[1]), np.float32)
            chosen = np.flatnonzero(number_T == number)
            found_TC[chosen] = block_MC[places_T[chosen] - number * size]
        return found_TC


def _block(folder: RunFolder, name: str, files: Entries) -> NDArray[np.float32]:
    data = folder.read(name)
    if entry_of(data) != files[name]:
        raise StorageError(
            f"{folder.path(name)} is damaged: it isn't the file that was written; delete it, and "
            "the same command makes it again."
        )
    return artefacts.features_array(artefacts.read_table(data))
