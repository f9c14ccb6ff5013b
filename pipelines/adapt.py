"""Algorithm 1, as the driver runs it: stages that leave artefacts, and a journal of them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from cluster.eps import eps_setting
from cluster.outliers import in_all_parts, with_singletons
from cluster.quality import agreement, cluster_quality
from cluster.source_term import source_distance
from daal.config import Config
from daal.data.records import Domain
from daal.errors import LabelError
from daal.nn.stripes import whole_and_stripes
from pipelines.images.ingest import ingest
from pipelines.images.pixels import Images, Pixels
from pipelines.run import artefacts, label_health
from pipelines.run.folder import RunFolder, workers_text
from pipelines.run.kept_images import image_files
from pipelines.show.progress import Progress
from pipelines.training.extract import extract
from pipelines.training.fit import Trainer
from pipelines.training.label_and_score import estimate_parts, evaluate_features
from pipelines.training.train_state import Weights
from pipelines.workers.group import Workers
from pipelines.workers.resources import Resources

Scores = dict[str, Any]


@dataclass
class Adaptation:
    """One run. `adapt` is Algorithm 1; every other method is one of its stages."""

    config: Config
    run: RunFolder
    resources: Resources
    progress: Progress
    rows: list[Scores] = field(default_factory=list)  # of pretraining and of each iteration
    labellings: list[label_health.Clusters] = field(default_factory=list)
    selected: str | None = None  # the iteration whose model is the result
    source: Images | None = field(default=None, init=False)
    target: Images = field(init=False)

    def __post_init__(self) -> None:
        self.workers = Workers(self.config, self.run, self.resources, self.progress)
        self.pixels = Pixels(self.config, self.resources, self.progress.say)
        self.trainer = Trainer(self.config, self.workers, self.pixels, self.progress)

    def adapt(self) -> dict[str, Any]:
        """From two image sets to an adapted model; returns what summary.json holds."""
        with self.workers:
            self.algorithm_1()
        return self.finish()

    def algorithm_1(self) -> None:
        """The paper's listing, line by line; and the supervised bound, if wanted."""
        self.read_images()
        of_images = self.run.inputs
        weights = pretrained = self.pretrain()  # line 1
        features = self.extract("pretrain", weights)  # line 3, for the first iteration
        self.evaluate("pretrain", features)

        labels = None
        for iteration in range(1, self.config.iterations + 1):  # line 2
            name = f"iteration-{iteration:02d}"
            labels = self.estimate(name, weights, features, labels)  # lines 4, 5
            if label_health.converged(self.labellings[-1], self.config.stop_agreement):
                self.progress.say("converged: the labels are almost the last ones")
                break
            start = weights if self.config.warm_start else pretrained
            weights = self.train(name, iteration, features, labels, start)  # line 6
            features = self.extract(name, weights)  # line 3, for the next iteration
            self.evaluate(name, features)
        self.choose(weights, features, labels)

        if self.config.supervised_bound:
            with self.run.following(of_images):  # whatever the iterations have come to
                self.evaluate("supervised", self.extract("supervised", self.supervised_bound()))

    def pretrain_only(self) -> None:
        """Line 1 and the direct transfer; `adapt` on the same folder goes on from here."""
        with self.workers:
            self.read_images()
            self.evaluate("pretrain", self.extract("pretrain", self.pretrain()))

    def read_images(self) -> None:
        """Both domains, or the target alone."""
        self.source = None if self.config.target_only else self.ingest("source")
        self.target = self.ingest("target")

    def ingest(self, domain: Domain) -> Images:
        """Read a domain's folder once, into one table that travels through the object store."""
        settings = self.config.source if domain == "source" else self.config.target
        files = image_files(domain)

        def make() -> dict[str, bytes | pa.Buffer]:
            table, quarantine = ingest(self.config, domain)
            self.progress.say(
                f"{domain}: {len(table)} images from {settings.root}"
                + (f", {len(quarantine)} unreadable set aside" if len(quarantine) else "")
            )
            return dict(zip(files, map(artefacts.table_bytes, (table, quarantine)), strict=True))

        contents = self._once(f"ingest/{domain}", files, make)
        table = artefacts.read_table(contents[files[0]]).combine_chunks()
        return Images(table, ray.put(table))

    def pretrain(self) -> Weights:
        """Line 1: Eq. 3 on the source; without a source, the backbone's weights as they are."""
        if (source := self.source) is None:
            return self._checkpoint("pretrain", self.trainer.untrained, on_workers=False)
        return self._checkpoint("pretrain", lambda: self.trainer.supervised("pretrain", source))

    def supervised_bound(self) -> Weights:
        """The same training on the target's true identities: Table 4's first row."""
        return self._checkpoint(
            "supervised", lambda: self.trainer.supervised("supervised", self.target)
        )

    def extract(self, name: str, weights: Weights) -> NDArray[np.float32]:
        """Line 3: features of every target image (training, query and gallery at once)."""
        file = f"{name}/features.parquet"

        def make() -> dict[str, bytes | pa.Buffer]:
            features = extract(
                f"{name}/extract", self.target, self.config, weights, self.workers, self.pixels
            )
            table = artefacts.features_table(self.target.table, features)
            return {file: artefacts.table_bytes(table)}

        contents = self._once(f"{name}/extract", [file], make)
        return artefacts.features_array(artefacts.read_table(contents[file]))

    def source_distance(
        self, name: str, weights: Weights, features_NX: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """How unlike all source images each target image is (UDAP), if that is wanted. (N, P)"""
        if self.config.cluster.source_weight == 0 or (source := self.source) is None:
            return None
        file = f"{name}/source_distance.parquet"

        def make() -> dict[str, bytes | pa.Buffer]:
            stage = f"{name}/extract-source"
            of_source = extract(stage, source, self.config, weights, self.workers, self.pixels)
            pairs = zip(
                self._parts(features_NX), self._parts(of_source[source.rows("train")]), strict=True
            )
            distance_NP = np.stack([source_distance(*pair) for pair in pairs], axis=1)
            table = artefacts.parts_table(self.target.table, "source_distance", distance_NP)
            return {file: artefacts.table_bytes(table)}

        contents = self._once(f"{name}/source-distance", [file], make)
        return artefacts.read_parts(contents[file])

    def estimate(
        self,
        name: str,
        weights: Weights,
        features_NX: NDArray[np.float32],
        previous: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        """Line 4: pseudo-labels of the training images, (N, P): of the whole body, and of stripes.

        With no cluster, the previous iteration's labels are kept; in the first there are none.
        """
        to_source_NP = self.source_distance(name, weights, features_NX)
        config, target = self.config.cluster, self.target
        files = [f"{name}/pseudo_labels.parquet", f"{name}/clusters.json"]
        rows = target.rows("train")
        pids, camids = target.column("pid")[rows], target.column("camid")[rows]
        frozen = label_health.kept_eps(self.labellings, config)

        def make() -> dict[str, bytes | pa.Buffer]:
            labels_NP = np.full((len(target.table), 1 + self.config.network.stripes), -1)
            try:
                parts = [features_NC[rows] for features_NC in self._parts(features_NX)]
                estimated = estimate_parts(
                    parts,
                    config,
                    frozen or [None] * len(parts),
                    camids,
                    None if to_source_NP is None else to_source_NP[rows],
                    self.workers,
                    self.progress.tasks,
                )
                labels_NP[rows] = in_all_parts(
                    np.stack([found.labels for found in estimated], 1), eps_setting(config)
                )
                found_now: dict[str, Any] = {
                    "eps": [found.eps for found in estimated],
                    "first_eps": [found.first_eps for found in estimated],
                    "notes": [note for found in estimated for note in found.notes],
                    "silhouette": estimated[0].silhouette,
                    "cross_camera_silhouette": estimated[0].cross_camera_silhouette,
                }
                if previous is not None:
                    found_now["agreement"] = agreement(previous[rows, 0], labels_NP[rows, 0])
            except LabelError as error:
                if previous is None:
                    raise
                labels_NP = previous
                notes = [f"kept the previous labels: {error}"]
                found_now = {"eps": self.labellings[-1]["eps"], "notes": notes, "kept": True}
            known = pids if (pids > 0).any() else None
            quality = cluster_quality(labels_NP[rows, 0], known, camids)
            clusters = {**found_now, **quality.as_dict()}
            table = artefacts.parts_table(target.table, "pseudo_label", labels_NP)
            return {
                files[0]: artefacts.table_bytes(table),
                files[1]: artefacts.json_bytes(clusters),
            }

        contents = self._once(f"{name}/estimate", files, make)
        clusters = label_health.as_found(json.loads(contents[files[1]]))
        before = self.labellings[-1] if self.labellings else None
        self.labellings.append(clusters)
        self.progress.figures(name, **{k: v for k, v in clusters.items() if k != "notes"})
        for note in [*clusters["notes"], *label_health.warnings(clusters, before, config)]:
            self.progress.note(note)
        self.progress.say(
            f"{name}: {clusters['num_clusters']} clusters, "
            f"{clusters['outlier_share']:.0%} outliers, eps "
            + ", ".join(f"{eps:.3f}" for eps in clusters["eps"])
        )
        return artefacts.read_parts(contents[files[0]])

    def train(
        self,
        name: str,
        iteration: int,
        features_NX: NDArray[np.float32],
        pseudo_labels_NP: NDArray[np.int64],
        weights: Weights,
    ) -> Weights:
        """Line 6: Eq. 7 on both domains, from the last weights, with a new head for K clusters."""
        self.rows.append({"name": name, **self.labellings[-1]})
        if self.config.cluster.outliers == "singletons":
            rows = self.target.rows("train")
            pseudo_labels_NP = with_singletons(pseudo_labels_NP[:, 0], rows)[:, None]
        return self._checkpoint(
            name,
            lambda: self.trainer.adapt(
                *(name, iteration, self.source, self.target),
                *(features_NX, pseudo_labels_NP, weights),
            ),
        )

    def evaluate(self, name: str, features_NC: NDArray[np.float32]) -> None:
        """Scores on the target's query and gallery, if it has them."""
        if len(self.target.rows("query")) == 0:
            return
        file = f"{name}/evaluation.json"

        def make() -> dict[str, bytes | pa.Buffer]:
            found = evaluate_features(
                f"{name}/evaluate", self.target.table, features_NC, self.workers
            )
            return {file: artefacts.json_bytes(found.as_dict())}

        contents = self._once(f"{name}/evaluate", [file], make, leads_on=False)
        scores = json.loads(contents[file])
        if self.rows and self.rows[-1]["name"] == name:
            self.rows[-1].update(scores)
        else:
            self.rows.append({"name": name, **scores})
        self.progress.figures(name, **self.rows[-1])
        self.progress.say(f"{name}: mAP {scores['map']:.1%}  Rank-1 {scores['rank1']:.1%}")

    def choose(
        self,
        weights: Weights,
        features_NX: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
    ) -> None:
        """Name the iteration whose model is the result."""
        models = [row["name"] for row in self.rows if row["name"].startswith("iteration-")]
        if not models or self.config.select == "last":
            self.selected = models[-1] if models else None
            return
        if len(self.labellings) == len(models):  # not stopped by the next one's labels
            self.estimate("final", weights, features_NX, labels)
        self.selected = label_health.best_model(models, self.labellings[1:])
        self.progress.say(f"selected by silhouette: {self.selected}")

    def finish(self) -> dict[str, Any]:
        """Write summary.json and forget what only a resumed training would have needed."""
        summary = self.summary()
        self.run.write("summary.json", artefacts.json_bytes(summary))
        self.run.delete_folder("ray_train")
        return summary

    def summary(self) -> dict[str, Any]:
        """What summary.json holds, of as much as has been done."""
        by_name = {row["name"]: row for row in self.rows}
        iterations = [row for row in self.rows if row["name"].startswith("iteration-")]
        return {
            "direct_transfer": _score(by_name.get("pretrain")),
            "adapted": _score(by_name.get(self.selected or "")),
            "selected": self.selected,
            "supervised": _score(by_name.get("supervised")),
            "iterations": iterations,
            "seed": self.config.seed,
            "seconds": round(sum(line["seconds"] for line in self.run.journal()), 1),
        }

    def _parts(self, features_NX: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return whole_and_stripes(features_NX, self.config.network.stripes)

    def _once(
        self,
        stage: str,
        files: list[str],
        make: Callable[[], dict[str, bytes | pa.Buffer]],
        leads_on: bool = True,
        made_on: dict[str, Any] | None = None,
    ) -> dict[str, bytes]:
        """`RunFolder.once`, shown and timed."""
        with self.progress.stage(stage):
            return self.run.once(stage, files, make, leads_on, made_on)

    def _checkpoint(
        self, name: str, train: Callable[[], Weights], on_workers: bool = True
    ) -> Weights:
        folder = f"{name}/checkpoint"
        config = self.config.model_dump(mode="json", exclude={"tracking"})
        metadata = {"stage": name, "config": config}
        made_on = self._made_on() if on_workers else {}

        def make() -> dict[str, bytes | pa.Buffer]:
            if made_on:
                self._note_other_workers(name, made_on)
            return dict(artefacts.checkpoint_bytes(folder, train(), metadata))

        contents = self._once(
            f"{name}/train", artefacts.checkpoint_files(folder), make, made_on=made_on
        )
        return artefacts.read_checkpoint(folder, contents)

    def _made_on(self) -> dict[str, Any]:
        """What a training is made on; nothing of an elastic run, which changes its workers."""
        found = self.resources
        if found.least_workers < found.most_workers:
            return {}
        return {"workers": found.num_workers, "device": "GPU" if found.use_gpu else "CPU"}

    def _note_other_workers(self, name: str, made_on: dict[str, Any]) -> None:
        """Say if the training before this one was made on other workers."""
        before = next((line for line in reversed(self.run.journal()) if "workers" in line), made_on)
        if (then := workers_text(before)) != (now := workers_text(made_on)):
            note = (
                f"{name} is trained on {now}, where {before['stage']} was on {then}: the result "
                "differs from that of either alone in rounding and in BatchNorm's groups"
            )
            self.progress.note(note)
            self.progress.figures(f"{name}/train", note=note)


def _score(row: Scores | None) -> dict[str, float] | None:
    if row is None or "map" not in row:
        return None
    return {key: row[key] for key in ("map", "rank1", "rank5", "rank10", "map_official")}
