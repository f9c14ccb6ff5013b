"""A run's figures as Ray metrics: in the dashboard, to Prometheus, in Grafana's panels.

All are tagged with the run's name; Ray exports them as `ray_daal_...` on every node's metrics port.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

# Field of a line of metrics.jsonl -> gauge and what it says. Shares are 0 to 1.
GAUGES = {
    "map": ("daal_map", "Mean average precision on the target's test images, 0-1."),
    "rank1": ("daal_rank1", "Rank-1 accuracy on the target's test images, 0-1."),
    "num_clusters": ("daal_clusters", "K: clusters of the newest pseudo-labels."),
    "kept": ("daal_labels_kept", "1 where no new labels were found and the last ones were kept."),
    "outlier_share": ("daal_outlier_share", "Share of images that are in no cluster."),
    "silhouette": ("daal_silhouette", "Silhouette of the newest pseudo-labels, -1 to 1."),
    "cross_camera_silhouette": ("daal_cross_camera_silhouette",
                                "The same by images of other cameras alone, -1 to 1."),
    "agreement": ("daal_agreement", "Adjusted Rand index of the newest labels and the last."),
    "one_camera_share": ("daal_one_camera_share", "Share of the clusters of one camera."),
    "cross_camera_share": ("daal_cross_camera_share",
                           "Share of the pairs of images in clusters that are of two cameras."),
    "cross_camera_chance": ("daal_cross_camera_chance",
                            "What that share would be in random clusters of the same sizes."),
    "images_per_s": ("daal_images_per_second", "Images trained on in a second, all workers."),
    "input_share": ("daal_input_wait_share", "Share of the training's time waiting for images."),
    "lr": ("daal_learning_rate", "Learning rate of the layers that are not the backbone's."),
    "workers": ("daal_workers", "Workers of the group at work."),
    "step": ("daal_step", "Steps done of the training at work."),
    "steps": ("daal_steps", "Steps of the training at work."),
}  # fmt: skip


class Gauges:
    """Takes the lines of metrics.jsonl, shows what changes in them."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            field: Gauge(name, description, tag_keys=("run",))
            for field, (name, description) in GAUGES.items()
        }
        self._loss = Gauge("daal_loss", "Terms of the loss.", tag_keys=("run", "term"))
        self._stage = Gauge(
            "daal_stage", "1 for the stage at work, 0 for those before.", tag_keys=("run", "stage")
        )
        self._run = {"run": run}
        self._now: str | None = None

    def show(self, event: Mapping[str, Any]) -> None:
        for field, gauge in self._gauges.items():
            if isinstance(event.get(field), int | float):
                gauge.set(float(event[field]), self._run)
        for term, value in event.get("loss", {}).items():
            self._loss.set(value, {**self._run, "term": term})
        if event.get("state") == "started":
            if self._now is not None:
                self._stage.set(0, {**self._run, "stage": self._now})
            self._now = str(event["stage"])
            self._stage.set(1, {**self._run, "stage": self._now})
