"""The configuration that a run has begun with, and what may differ when it is continued."""

from typing import Any

import yaml

from daal.config import MAY_CHANGE, NOT_KEPT, Config, marked
from daal.data.records import Domain
from daal.errors import ConfigError
from daal.load_config import check_config, differences
from pipelines.run.folder import RunFolder
from pipelines.run.kept_images import changes_since, kept_images
from pipelines.run.stages import Stage

CONFIG, SUMMARY = "config.yaml", "summary.json"
DOMAINS: tuple[Domain, ...] = ("source", "target")


def kept_settings(run: RunFolder) -> dict[str, Any] | None:
    """config.yaml as it is; None if there is none.

    Raises:
        ConfigError: it is damaged.
    """
    if not run.exists(CONFIG):
        return None
    try:
        values = yaml.safe_load(run.read(CONFIG))
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{run.uri}/{CONFIG} is damaged: it isn't YAML with a run's settings; get the file "
            "back, or make the run again."
        )
    return values


def checked(settings: dict[str, Any]) -> Config:
    """The configuration that config.yaml holds; fields that are newer have their defaults.

    Release 0.1 left `ray` out, whose default number of workers need not divide the batches that a
    run was begun with; one worker always does.
    """
    return check_config({"ray": {"num_workers": 1}} | settings, kept=True)


def keep_config(run: RunFolder, config: Config) -> None:
    """Write config.yaml, or check that this is the run that the folder belongs to.

    Settings marked `MAY_CHANGE` may differ. So may what no finished stage depends on: `iterations`,
    down to those that were begun, and a data set's root, if it has the images that the run has
    read.

    Raises:
        ConfigError: the folder has a run with another configuration; names each difference.
        DataError: the new root isn't what its layout says.
    """
    ours = config.model_dump(mode="json", exclude=marked(NOT_KEPT))
    values = kept_settings(run)
    if values is None:
        _write(run, ours)
        return
    kept = checked(values)
    other = differences([_compared(config), _compared(kept)])
    roots = {domain: other.get(f"{domain}.root", ["", ""]) for domain in DOMAINS}
    moved = {domain: root for domain, root in roots.items() if all(root)}
    allowed = {"iterations", *(f"{domain}.root" for domain in moved)}
    changes = [
        f"{key} was {before!r} and is {now!r}"
        for key, (now, before) in other.items()
        if key not in allowed
    ]
    if changes:
        raise ConfigError(
            f"{run.uri} holds a run with another configuration ({'; '.join(changes)}); "
            "continue it with the same settings, or choose another out=."
        )
    if config.iterations < (begun := _iterations_begun(run)):
        raise ConfigError(
            f"{run.uri} has begun iteration {begun}, and iterations is {config.iterations}; "
            f"continue it with iterations={begun} or more, or choose another out=."
        )
    for domain, (now, before) in moved.items():
        held = kept_images(run, domain)
        if held is not None and (changed := changes_since(held, config, moved=True)):
            raise ConfigError(
                f"{domain}.root was {before!r} and is {now!r}, which has other images than "
                f"{run.uri} has read: {changed}; give the folder that they were moved to, or "
                "choose another out=."
            )
    if config.iterations > kept.iterations and run.exists(SUMMARY):
        run.delete_file(SUMMARY)  # the run is no longer finished
    if ours != values:
        _write(run, ours)


def _compared(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=marked(NOT_KEPT) | marked(MAY_CHANGE))


def _write(run: RunFolder, settings: dict[str, Any]) -> None:
    run.write(CONFIG, yaml.safe_dump(settings, sort_keys=False).encode())


def _iterations_begun(run: RunFolder) -> int:
    stages = (Stage.parse(line["stage"]) for line in run.journal())
    return max((stage.iteration for stage in stages if stage), default=0)
