"""The commands for models and their features: extract, evaluate, export, search, replay."""

import json
import math
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

from daal.config import ANY_LAYOUT, Layout
from daal.whole_file import check_file_to_write, write_whole
from pipelines.commands.arguments import AsJson, Verbose
from pipelines.show.console import errors, plain, show

LAYOUTS = ", ".join(get_args(Layout))
FOLDER_LAYOUTS = ", ".join(
    layout for layout in get_args(Layout) if layout not in ("table", "webdataset", "joined")
)
Model = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="A run's folder, whose selected or last iteration is taken; or a checkpoint's folder.",
    ),
]


def extract(
    model: Model,
    images: Annotated[str, typer.Argument(help="A data set's folder, or any folder of images.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings, e.g. ray.num_workers=1"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The features file to write.")] = Path(
        "features.parquet"
    ),
    layout: Annotated[
        str,
        typer.Option(
            help=f"How the folder is laid out: {LAYOUTS}. With {ANY_LAYOUT}, all images under it "
            "are taken, and the file has only paths and features."
        ),
    ] = "market1501",
    verbose: Verbose = False,
) -> None:
    """Write the features of all images of a folder to a Parquet file."""
    from pipelines.run.artefacts import table_bytes
    from pipelines.run.find_checkpoint import checkpoint_of
    from pipelines.tools.extract_folder import extract_folder

    check_file_to_write(out)
    with checkpoint_of(model) as (folder, _):
        table, quarantine = extract_folder(folder, images, layout, overrides or [], verbose)
    write_whole(out, bytes(table_bytes(table)))
    for row in quarantine.to_pylist():
        show("yellow", "left out", f"{row['path']}: {row['reason']}")
    errors.print(f"{len(table)} features written to {out}")


def evaluate(
    features: Annotated[Path, typer.Argument(help="A features file with query and gallery rows.")],
) -> None:
    """Print scores of a features file by the Market-1501 protocol, as JSON."""
    from pipelines.tools.evaluate_file import evaluate_file

    print(json.dumps(evaluate_file(features).as_dict(), indent=1))


def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file to write.")],
    format: Annotated[
        str, typer.Option(help="onnx, torch (a torch.export program) or safetensors.")
    ] = "onnx",
) -> None:
    """Write the model as one file for other programs, and check that it gives the same features."""
    from daal import export as exporting
    from daal.trained_model import load_trained
    from pipelines.run.find_checkpoint import checkpoint_of

    exporting.check_export(format, out)
    with checkpoint_of(model) as (folder, name):
        trained = load_trained(folder)
    found = exporting.export(trained, format, out)
    flip = " of the image and its mirror image" if trained.config.flip_test else ""
    size, channels = trained.config.input, trained.network.num_features
    for line in (
        f"{name}, written to {out} ({found.num_bytes / 1e6:.1f} MB): uint8 RGB images "
        f"(B, 3, {size.height}, {size.width}) to features (B, {channels}){flip}",
        f"read back and compared with the checkpoint on batches of "
        f"{', '.join(map(str, found.batch_sizes))} images: largest difference of a coordinate "
        f"{found.largest:.1g} ({exporting.TOLERANCE:g} is allowed)",
    ):
        errors.print(plain(line), soft_wrap=True)
    print(exporting.usage(trained, format, out))


def search(
    model: Model,
    query: Annotated[Path, typer.Argument(help="An image.", metavar="QUERY_IMAGE")],
    gallery: Annotated[Path, typer.Argument(help="Any folder of images, or a data set's folder.")],
    layout: Annotated[
        str,
        typer.Option(
            help=f"With {FOLDER_LAYOUTS}, the data set's gallery is searched and pids are shown. "
            f"With {ANY_LAYOUT}, all images under the folder are searched."
        ),
    ] = ANY_LAYOUT,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many matches.")] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Also draw the matches: a .png, .jpg, .svg or .pdf file.")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="The gallery's features by this model, from daal extract or a run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the images of a gallery that are most like one image.

    Runs in this process, without Ray. For a large gallery, let daal extract write a features file
    (on a cluster, if you have one) and search that with --features.
    """
    from daal.trained_model import load_trained
    from pipelines.run.find_checkpoint import checkpoint_of
    from pipelines.search import gallery as galleries
    from pipelines.search.extractor import Extractor
    from pipelines.search.nearest import search as find
    from pipelines.search.picture import check_picture, draw

    if out is not None:
        check_picture(out)
        check_file_to_write(out)
    if not features:
        records = galleries.images_to_search(gallery, layout, "the gallery")
    with checkpoint_of(model) as (folder, _):
        extractor = Extractor(load_trained(folder))
    query_C = extractor.of_image(query, "the query image")
    with errors.status("the gallery's features") as status:
        if features:
            found = galleries.gallery_of_file(extractor, gallery, features)
        else:
            found = galleries.extract_gallery(
                extractor, gallery, records, layout != ANY_LAYOUT,
                lambda done: status.update(f"features: {done:,} of {len(records):,} images"),
            )  # fmt: skip
    for path, reason in found.left_out:
        show("yellow", "left out", f"{path}: {reason}")
    for note in found.notes:
        show("yellow", "note", note)
    matches = find(query, query_C, found, top)
    if out is not None:
        size = extractor.model.config.input
        write_whole(out, draw(query, gallery, matches, size, out.suffix.lower()))
    if as_json:
        report = {
            "query": str(query),
            "num_gallery": len(found.paths),
            "left_out": [{"path": path, "reason": reason} for path, reason in found.left_out],
            "matches": [match._asdict() for match in matches],
        }
        print(json.dumps(report, indent=1))
        return
    table = Table("", "image", "distance", "similarity", *(["pid"] if found.pids else []))
    for number, match in enumerate(matches, start=1):
        figures = [f"{match.distance:.4f}", f"{match.similarity:.4f}"]
        pid = [] if not found.pids else ["" if match.pid is None else str(match.pid)]
        table.add_row(str(number), plain(match.path), *figures, *pid)
    Console().print(table)
    picture = f"; picture: {out}" if out else ""
    errors.print(plain(f"{len(found.paths):,} images searched{picture}"), soft_wrap=True)


def replay(
    step: Annotated[
        Path, typer.Argument(help="The folder that the error of a diverged training names.")
    ],
) -> None:
    """Compute a diverged training step again, and name the first module that diverged."""
    from pipelines.training.diverged_step import replay as compute

    found = compute(step)
    # JSON has no NaN and no infinity; they are printed as text.
    loss = {name: x if math.isfinite(x) else str(x) for name, x in found.terms.items()}
    print(json.dumps({"diverged": found.diverged, "first": found.module, "loss": loss}))


def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint that another project published.")],
    out: Annotated[Path, typer.Option(help="The weights to write, for network.weights.")] = Path(
        "weights.safetensors"
    ),
) -> None:
    """Write the backbone's weights of a published checkpoint to a file for network.weights.

    Nothing is unpickled. It says what the file holds, and what is left out of it.
    """
    import safetensors.torch

    from daal.errors import ConfigError
    from daal.nn.published_weights import read_published

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: the file must end in .safetensors.")
    check_file_to_write(out)
    found = read_published(file)
    write_whole(out, safetensors.torch.save(found.tensors))
    under = f" under {found.prefix}" * bool(found.prefix)
    errors.print(plain(f"{file}: {len(found.tensors)} tensors{under} are written to {out}"))
    if names := found.left_out:
        more = ", ..." if len(names) > 5 else ""
        show("yellow", "left out", f"{len(names)} tensors: {', '.join(names[:5])}{more}")
    settings = f"network.backbone={found.backbone} network.weights={out}"
    print(f"{settings} network.ibn=a" if found.ibn else settings)
