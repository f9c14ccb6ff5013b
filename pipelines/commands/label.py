"""The command `label`: pseudo-labels of any features."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from daal.whole_file import check_file_to_write, write_whole
from pipelines.commands.arguments import AsJson, Verbose, ray_errors
from pipelines.show.console import errors, show


def label(
    features: Annotated[
        Path, typer.Argument(help='A .parquet file with a list column "feature", or .npy (N, D).')
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. cluster.k1=30 cluster.p=1e-3"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("pseudo_labels.parquet"),
    split: Annotated[
        str | None, typer.Option(help="Only rows of this split, e.g. train (default: all rows).")
    ] = None,
    on_ray: Annotated[
        bool,
        typer.Option("--ray", help="Compute on Ray: on RAY_ADDRESS's cluster, or on this machine."),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write pseudo-labels of any features: k-reciprocal distance, eps, DBSCAN.

    eps is found by cluster.q=10.35, which suits sets of any size. To change that, give one of
    cluster.p, cluster.q and cluster.eps.
    """
    from pipelines.run.artefacts import table_bytes
    from pipelines.run.feature_files import read_features
    from pipelines.run.label_health import camera_warnings
    from pipelines.tools import label_file as labelling

    config = labelling.label_config(overrides or [])
    check_file_to_write(out)
    needed = ["camid"] if config.cluster.camera_aware or config.cluster.camera_norm else []
    given = read_features(features, split, needed)
    for text in given.left_out:
        show("yellow", "note", text)
    with (
        ray_errors("-v shows what Ray says."),
        errors.status(f"{len(given.features_NC)} features") as status,
    ):
        found = labelling.label(
            given,
            config.cluster,
            config.ray if on_ray else None,
            verbose,
            lambda stage, done, tasks: status.update(f"{stage}: {done} of {tasks} tasks"),
        )
    figures = labelling.as_dict(given, found)  # first, so that a failure leaves no file
    write_whole(out, bytes(table_bytes(labelling.labels_table(given, found))))
    for note in [*found.notes, *camera_warnings(figures, config.cluster)]:
        show("yellow", "note", note)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        Console().print(labels_table_of(figures))
    errors.print(f"{len(found.labels)} pseudo-labels written to {out}")


def labels_table_of(figures: dict[str, Any]) -> Table:
    """Figures of pseudo-labels; those of cameras and identities only where these are known."""
    table = Table("", "", title="Pseudo-labels", show_header=False)
    for name in ("num_images", "num_clusters", "outlier_share", "largest_cluster", "eps", "p",
                 "one_camera_share", "cross_camera_share", "cross_camera_chance", "ari", "nmi",
                 "pair_precision", "cross_camera_precision", "pair_recall"):  # fmt: skip
        value = figures[name]
        if value is not None:
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
