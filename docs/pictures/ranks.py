"""The picture of the first page: queries of a finished run, and what is found for them.

    python docs/pictures/ranks.py RUN

All queries are put in the order of what adaptation did to their average precision, the worst first;
those at 20, 40, 60 and 80 % of the way are shown. Only for drawn images: it shows people.
"""

import io
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from daal.data.records import JUNK_PID
from daal.evaluation import evaluate
from pipelines.images.set_of_run import store_of_run
from pipelines.run.folder import RunFolder

SHOWN_AT, NUM_FOUND = (0.2, 0.4, 0.6, 0.8), 8
RIGHT, WRONG = "#2e9e5b", "#d1495b"


def main(run: Path) -> None:
    images = pq.read_table(run / "images/target.parquet")
    store = store_of_run(RunFolder(str(run)), "target")
    assert store is not None, "the store of the run's images was deleted"
    pids, camids, splits = (images[name].to_numpy() for name in ("pid", "camid", "split"))
    last = json.loads((run / "summary.json").read_text())["selected"]
    features = {
        name: np.stack(pq.read_table(run / name / "features")["feature"].to_numpy())
        for name in ("pretrain", last)
    }
    gallery, queries = np.flatnonzero(splits == "gallery"), np.flatnonzero(splits == "query")
    before, after = (
        evaluate(
            *(features_NC[queries], pids[queries], camids[queries]),
            *(features_NC[gallery], pids[gallery], camids[gallery]),
        ).ap
        for features_NC in features.values()
    )
    scored = np.flatnonzero(~np.isnan(before))
    order = scored[np.argsort((after - before)[scored], kind="stable")]
    queries = queries[order[[int(share * len(order)) for share in SHOWN_AT]]]
    gallery = gallery[pids[gallery] != JUNK_PID]

    width = 2 * (1 + NUM_FOUND) + 1  # a narrow column between the two models
    ratios = [1.0] * (1 + NUM_FOUND) + [0.5] + [1.0] * (1 + NUM_FOUND)
    figure, axes = plt.subplots(
        len(queries), width, figsize=(9.5, 4.4), gridspec_kw={"width_ratios": ratios}
    )
    for axis in axes.flat:
        axis.axis("off")
    for start, features_NC in zip((0, 2 + NUM_FOUND), features.values(), strict=True):
        for row, query in enumerate(queries):
            others = gallery[(pids[gallery] != pids[query]) | (camids[gallery] != camids[query])]
            order = np.argsort(-features_NC[others] @ features_NC[query], kind="stable")
            for column, shown in enumerate([query, *others[order[:NUM_FOUND]]]):
                axis = axes[row, start + column]
                (data,) = store.take(np.array([shown]))
                axis.imshow(Image.open(io.BytesIO(data)))
                axis.axis("on")
                axis.set(xticks=[], yticks=[])
                colour = RIGHT if pids[shown] == pids[query] else WRONG
                for spine in axis.spines.values():
                    spine.set(color="#555555" if column == 0 else colour, linewidth=2.5)
        for text, column in (("query", start), ("found", start + 1)):
            axes[0, column].set_title(text, fontsize=9, color="#555555")
    figure.text(0.26, 0.965, "before: direct transfer", ha="center", fontsize=11)
    figure.text(0.75, 0.965, f"after: {last}", ha="center", fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.89, bottom=0.01, wspace=0.12, hspace=0.06)
    out = Path(__file__).with_name("ranks.png")
    figure.savefig(out, dpi=110)
    Image.open(out).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(
        out, optimize=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
