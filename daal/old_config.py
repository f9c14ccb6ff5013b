"""Configurations of release 0.1, in today's settings."""

import logging
from collections.abc import Collection
from functools import cache
from typing import Any

from daal.config import Config, with_one_eps
from daal.errors import ConfigError

# What was a setting in release 0.1, and the value that it has had since.
FIXED: dict[str, Any] = {
    "network.attention.spatial_reduction": 2,
    "network.attention.channel_reduction": 16,
    "network.memory_momentum": 0.1,
    "network.head_scale": 20.0,
    "network.centroid_init": True,
    "network.batch_norm_images": 16,
    "network.unit_features": True,
    "augment.flip": 0.5,
    "pretrain.batch_target": 0,
    "pretrain.images_per_id": None,
    "pretrain.teacher_momentum": 0.0,
    "pretrain.optim.decay_at_iterations": [],
    "adapt.optim.warmup_steps": 0,
    **{
        f"{training}.optim.{name}": value
        for training in ("pretrain", "adapt")
        for name, value in (
            ("momentum", 0.9), ("nesterov", False), ("weight_decay", 5e-4), ("decay", 0.1)
        )
    },
    "cluster.k1_intra": 5,
    "cluster.k1_inter": 20,
    "cluster.k2_intra": 2,
    "cluster.k2_inter": 4,
    "cluster.max_backoffs": 4,
    "soft_labels.min_sq_distance": 1e-3,
    "ray.extract_batch": None,
}  # fmt: skip
# Any value, as none decides on the result.
IGNORED = ("source.published_counts", "target.published_counts", "ray.resize_seconds",
           "ray.threads_per_worker", "tracking.mlflow_experiment",
           "tracking.tensorboard", "cluster.products")  # fmt: skip
# One setting instead of two.
JOINED = {
    "max_train_images": ("source.max_train_images", "target.max_train_images"),
    "max_bad_share": ("source.max_bad_share", "target.max_bad_share"),
    "accumulate": ("pretrain.accumulate", "adapt.accumulate"),
    "checkpoint_every_epochs": (
        "pretrain.checkpoint_every_epochs", "adapt.checkpoint_every_epochs",
    ),
}  # fmt: skip


def of_today(values: dict[str, Any], from_user: Collection[str] = ()) -> dict[str, Any]:
    """Nested values with today's keys for those of release 0.1 (changed in place, and returned).

    Keys `from_user` of which the value is lost are logged as warnings.

    Raises:
        ConfigError: a setting that is gone had another value than it always has now.
    """
    for key in IGNORED:
        if pop(values, key) is not MISSING and key in from_user:
            _warn(f"{key} is no setting any more and is ignored.")
    for key, fixed in FIXED.items():
        if (given := pop(values, key)) not in (MISSING, fixed):
            now = f"it is {as_yaml(fixed)}; leave it out."
            raise ConfigError(f"{key}={as_yaml(given)} can't be set any more: {now}")
    for key, old in JOINED.items():
        _join(values, key, old, from_user)
    for training in ("pretrain", "adapt"):
        _list_decays(values, training)
    literal = pop(values, "soft_labels.form") == "literal"
    if literal and values["soft_labels"].get("target_labels", "soft") == "soft":
        values["soft_labels"]["target_labels"] = "soft-literal"
    if isinstance(cluster := values.get("cluster"), dict):
        try:
            values["cluster"] = with_one_eps(cluster)
        except ValueError as error:
            raise ConfigError(f"{error}.") from None
    return values


MISSING = object()


@cache  # once: a suite reads the same settings for each of its rows
def _warn(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def as_yaml(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def pop(values: dict[str, Any], key: str) -> Any:
    """Take a dotted key out of nested values; MISSING if it isn't there."""
    *sections, name = key.split(".")
    within: Any = values
    for section in sections:
        within = within.get(section) if isinstance(within, dict) else None
    return within.pop(name, MISSING) if isinstance(within, dict) else MISSING


def _join(
    values: dict[str, Any], key: str, old: tuple[str, str], from_user: Collection[str]
) -> None:
    given = [pop(values, name) for name in old]
    if given == [MISSING, MISSING]:
        return
    default = Config.model_fields[key].default
    first, second = (default if value is MISSING else value for value in given)
    if first != second:
        if key != "checkpoint_every_epochs":  # which decides on no result
            raise ConfigError(
                f"{' and '.join(old)} are one setting now; write {key} in their place."
            )
        if set(old) & set(from_user):
            _warn(
                f"{old[0]}={first} and {old[1]}={second} are one setting now, {key}={second}; "
                "write that in their place."
            )
    if key in values and set(old) & set(from_user):
        _warn(f"{' and '.join(old)} are not read, as {key}={values[key]} is given; leave them out.")
    values.setdefault(key, second)


def _list_decays(values: dict[str, Any], training: str) -> None:
    """decay_every_epochs=60 was a decay at 60, 120, 180 and so on, where none were listed."""
    section = values.get(training)
    optim = section.get("optim") if isinstance(section, dict) else None
    if not isinstance(section, dict) or not isinstance(optim, dict):
        return
    every = optim.pop("decay_every_epochs", MISSING)
    if optim.get("decay_at_epochs", MISSING) not in (None, MISSING):
        return
    defaults = Config.model_fields[training].default
    epochs = section.get("epochs", defaults.epochs)
    if every is MISSING:
        every = 60 if "decay_at_epochs" in optim else None
    if not isinstance(epochs, int) or not isinstance(every, int) or every < 1:
        return
    optim.pop("decay_at_epochs", None)
    listed = list(range(every, epochs, every))
    if listed != [epoch for epoch in defaults.optim.decay_at_epochs if epoch < epochs]:
        optim["decay_at_epochs"] = listed
