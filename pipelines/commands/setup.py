"""The commands doctor, synth, tracks, config show and config schema."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from daal.config import Config
from daal.errors import ConfigError
from pipelines.commands.arguments import AsJson, Overrides, Recipe
from pipelines.show.console import errors, plain, show
from pipelines.tools.shipped import read_config

COLOURS = {"ok": "green", "warning": "yellow", "missing": "red"}


def doctor(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say what works on this machine, and what is missing for a run.

    This takes seconds, or up to a minute with a cluster. Settings say what a run would need: with
    out=URI a small file is written there, with ray.use_gpu=true GPUs must be there. With
    RAY_ADDRESS it joins that cluster for a moment. The exit code is 0 if a run can start, otherwise
    the code that the run would end with. Data sets are checked by daal validate.
    """
    from daal.load_config import load_config
    from pipelines.doctor.checks import as_dict, examine, exit_code

    given = overrides or []
    write_out = any(setting.partition("=")[0] == "out" for setting in given)
    with errors.status("checking this machine"):
        checks = examine(load_config(None, given), write_out, tell=partial(show, "yellow", "note"))
    code = exit_code(checks)
    if as_json:
        print(json.dumps(as_dict(checks), indent=1))
        sys.exit(code)
    width = max(len(check.name) for check in checks)
    for check in checks:
        line = plain(f"{check.status:7}  {check.name:{width}}  {check.found}")
        line.stylize(COLOURS[check.status], 0, len(check.status))
        if check.remedy:
            line.append(f"; {plain(check.remedy)}")
        Console().print(line, soft_wrap=True)
    names = ", ".join(check.name for check in checks if check.exit_code)
    Console().print("a run can start here" if code == 0 else f"no run can start here yet: {names}")
    sys.exit(code)


def tracks(
    sequences: Annotated[list[Path], typer.Argument(help="Folders of sequences, one a camera.")],
    out: Annotated[Path, typer.Option("--out", help="The table, a .csv file above the frames.")],
    file: Annotated[
        str | None,
        typer.Option(
            "--tracks",
            help="The file of boxes in each sequence, or a folder with SEQUENCE.txt for each; "
            "otherwise gt/gt.txt or det/det.txt.",
        ),
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Take every so many frames of a track.")
    ] = 1,
) -> None:
    """Write a table of the boxes that a tracker found (MOT files beside frames).

    A run reads it with target.layout=table target.root=TABLE.
    """
    from pipelines.tools.track_table import write_track_table

    if out.suffix != ".csv":
        raise ConfigError(f"--out {out} must end in .csv.")
    num_rows = write_track_table(sequences, out, file, every)
    Console().print(plain(f"{out}: {num_rows:,} boxes of {len(sequences)} cameras"))


def config_show(recipe: Recipe, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved configuration as YAML."""
    values = read_config(recipe, overrides).model_dump(mode="json")
    print(
        json.dumps(values, indent=1)
        if as_json
        else yaml.safe_dump(values, sort_keys=False).rstrip()
    )


def config_schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check YAML."""
    schema = Config.model_json_schema()
    print(
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1)
    )


def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the two drawn domains.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other people.")] = 0,
) -> None:
    """Draw a source and a target domain of pedestrians, in Market-1501's layout."""
    from daal.drawn.domains import draw_domains

    draw_domains(out, seed=seed)
    errors.print(f"drawn: {out}/source and {out}/target")
