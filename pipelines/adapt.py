"""Algorithm 1, as the driver runs it: stages that leave files and a journal in the run folder.

Features stay where workers have written them; this process knows the files, and holds labels.

Shapes: N images of the target, P parts of the body.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.arrays import Labels
from cluster.outliers import with_singletons
from daal.config import Config
from daal.data.records import Domain
from pipelines.images.ingest import Images
from pipelines.images.pixels import Pixels
from pipelines.images.set_of_run import read_set, set_of_run
from pipelines.run import artefacts, label_health
from pipelines.run.feature_blocks import FeatureBlocks, SomeFeatures, block_files
from pipelines.run.folder import Contents, RunFolder
from pipelines.run.kept_images import image_files
from pipelines.run.results import Clusters, Results, Scores
from pipelines.run.stages import FINAL, PRETRAIN, SUPERVISED, Stage, ingest_stage, iteration_stage
from pipelines.show.progress import Progress
from pipelines.training.evaluate import evaluate_features
from pipelines.training.extract import extract
from pipelines.training.fit import Trainer
from pipelines.training.made_on import made_on, other_workers
from pipelines.training.pseudo_labels import ToLabel, distances_to_source, label_images
from pipelines.training.train_state import Weights
from pipelines.workers.group import Workers
from pipelines.workers.resources import Resources

# Those of a finished stage may have been dropped: they are made again when they are asked for.
LazyFeatures = Callable[[], FeatureBlocks]


@dataclass
class Adaptation:
    """One run. `algorithm_1` is the paper's listing; every other method is one of its stages."""

    config: Config
    run: RunFolder
    resources: Resources
    progress: Progress
    results: Results = field(default_factory=Results)
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
        after_images = self.run.inputs
        weights = pretrained = self.pretrain()  # line 1
        features = self.extract(PRETRAIN, weights)  # line 3, for the first iteration
        self.evaluate(PRETRAIN, features)

        labels = None
        for number in range(1, self.config.iterations + 1):  # line 2
            stage = iteration_stage(number)
            labels = self.estimate(stage, weights, features, labels)  # lines 4, 5
            clusters = self.results.labellings[stage]
            if label_health.converged(clusters, self.config.stop_agreement):
                self.progress.say("converged: the labels are almost the last ones")
                break
            start = weights if self.config.warm_start else pretrained
            weights = self.train(stage, features, labels, start)  # line 6
            self.drop_features(number - 1)
            features = self.extract(stage, weights)  # line 3, for the next iteration
            self.evaluate(stage, features)
        self.choose(weights, features, labels)

        if self.config.supervised_bound:
            self.run.inputs = after_images  # it follows from the images alone
            weights = self.supervised(SUPERVISED, self.target)
            self.evaluate(SUPERVISED, self.extract(SUPERVISED, weights))

    def pretrain_only(self) -> None:
        """Line 1 and the direct transfer; `adapt` on the same folder continues from here."""
        with self.workers:
            self.read_images()
            self.evaluate(PRETRAIN, self.extract(PRETRAIN, self.pretrain()))

    def read_images(self) -> None:
        """Both domains, or the target alone."""
        self.source = None if self.config.target_only else self.ingest("source")
        self.target = self.ingest("target")

    def ingest(self, domain: Domain) -> Images:
        """A domain's images, read once for all runs into a store; its table is the run's own."""
        files = image_files(domain)

        def make() -> Contents:
            tables = read_set(self.config, domain, self.run, self.progress)
            return dict(zip(files, map(artefacts.table_bytes, tables), strict=True))

        contents = self._once(ingest_stage(domain), files, make)
        table = artefacts.read_table(contents[files[0]]).combine_chunks()
        return set_of_run(table, self.config, domain, self.run, self.progress)

    def pretrain(self) -> Weights:
        """Line 1: Eq. 3 on the source; without a source, the backbone's weights as they are."""
        if self.source is None:
            return self._checkpoint(PRETRAIN, self.trainer.untrained, on_workers=False)
        return self.supervised(PRETRAIN, self.source)

    def supervised(self, model: Stage, images: Images) -> Weights:
        """Eq. 3 on true identities: the source's, or the target's for Table 4's first row."""
        return self._checkpoint(model, lambda: self.trainer.supervised(str(model), images))

    def extract(self, model: Stage, weights: Weights) -> LazyFeatures:
        """Line 3: features of the training images; of query and gallery too if they are scored."""
        rows = None if self.is_scored(model) else self.target.rows("train")
        return self._extract(model.at("extract"), weights, rows)

    def is_scored(self, model: Stage) -> bool:
        """Whether a model is scored when it is trained; the result is scored in any case."""
        every, number = self.config.evaluate_every, model.iteration
        return number in (0, self.config.iterations) or (every > 0 and number % every == 0)

    def estimate(
        self,
        stage: Stage,
        weights: Weights,
        features: LazyFeatures,
        previous: Labels | None,
    ) -> Labels:
        """Lines 4 and 5: pseudo-labels (N, P) of the whole body and of stripes.

        -1: an outlier, or no training image. If there is no cluster, the previous iteration's
        labels are kept.

        Raises:
            LabelError: there is no cluster in the first iteration.
        """
        files = [stage.file("pseudo_labels.parquet"), stage.file("clusters.json")]
        config, images = self.config.cluster, self.target
        earlier = list(self.results.labellings.values())
        to_source_NP = self.source_distance(stage, weights, features)
        rows = images.rows("train")

        def make() -> Contents:
            given = ToLabel(
                self._parts(features(), rows),
                images.column("pid")[rows],
                images.column("camid")[rows],
                None if to_source_NP is None else to_source_NP[rows],
                None if previous is None else previous[rows],
            )
            labels_NP = np.full((len(images.table), len(given.parts)), -1)
            labels_NP[rows], clusters = label_images(
                given, config, earlier, self.workers, self.progress.tasks
            )
            table = artefacts.parts_table(images.table, "pseudo_label", labels_NP)
            json_bytes = artefacts.json_bytes(clusters.as_dict())
            return {files[0]: artefacts.table_bytes(table), files[1]: json_bytes}

        contents = self._once(stage.at("estimate"), files, make)
        clusters = Clusters.from_json(json.loads(contents[files[1]]))
        self._show(stage, clusters, earlier[-1] if earlier else None)
        self.results.labellings[stage] = clusters
        return artefacts.read_parts(contents[files[0]])

    def _show(self, stage: Stage, clusters: Clusters, before: Clusters | None) -> None:
        """Figures of a labelling, and what looks wrong."""
        figures = {name: value for name, value in clusters.as_dict().items() if name != "notes"}
        self.progress.figures(stage.name, **figures)
        warnings = label_health.warnings(clusters, before, self.config.cluster)
        for note in (*clusters.notes, *warnings):
            self.progress.note(note)
        self.progress.say(
            f"{stage.name}: {clusters.num_clusters} clusters, "
            f"{clusters.outlier_share:.0%} outliers, eps "
            + ", ".join(f"{eps:.3f}" for eps in clusters.eps)
        )

    def source_distance(
        self, stage: Stage, weights: Weights, features: LazyFeatures
    ) -> NDArray[np.float32] | None:
        """How unlike all source images each training image of the target is (UDAP), if that is
        wanted. (N, P), 0 for others."""
        if self.config.cluster.source_weight == 0 or (source := self.source) is None:
            return None
        file, folder = stage.file("source_distance.parquet"), stage.file("source_features")
        rows, source_rows = self.target.rows("train"), source.rows("train")

        def make() -> Contents:
            entries = extract(
                str(stage.at("extract-source")), source, self.config, weights,
                self.workers, self.pixels, source_rows, folder,
            )  # fmt: skip
            of_source = FeatureBlocks(self.run, entries, source_rows)
            parts = self._parts(features(), rows), self._parts(of_source, source_rows)
            distance_NP = np.zeros((len(self.target.table), len(parts[0])), np.float32)
            threads = self.workers.resources.threads_per_task
            distance_NP[rows] = distances_to_source(*parts, threads)
            self.run.delete_folder(folder)
            table = artefacts.parts_table(self.target.table, "source_distance", distance_NP)
            return {file: artefacts.table_bytes(table)}

        contents = self._once(stage.at("source-distance"), [file], make)
        return artefacts.read_parts(contents[file])

    def train(
        self, stage: Stage, features: LazyFeatures, labels: Labels, start: Weights
    ) -> Weights:
        """Line 6: Eq. 7 on both domains, with a new head for the clusters."""
        self.results.models.append(stage)
        if self.config.cluster.outliers == "singletons":
            labels = with_singletons(labels[:, 0], self.target.rows("train"))[:, None]
        return self._checkpoint(
            stage,
            lambda: self.trainer.adapt(
                stage=stage.name,
                iteration=stage.iteration,
                source=self.source,
                target=self.target,
                features=self._parts(features(), self.target.rows("train"))[0],
                pseudo_labels_NP=labels,
                start=start,
            ),
        )

    def evaluate(self, model: Stage, features: LazyFeatures, is_result: bool = False) -> None:
        """Scores on the target's query and gallery, if it has them and the model is to be scored.

        The features are of all images then.
        """
        if not len(self.target.rows("query")) or not (is_result or self.is_scored(model)):
            return
        file, stage = model.file("evaluation.json"), model.at("evaluate")

        def make() -> Contents:
            found = evaluate_features(str(stage), self.target, features(), self.workers)
            return {file: artefacts.json_bytes(found.as_dict())}

        contents = self._once(stage, [file], make, leads_on=False)
        scores = self.results.scores[model] = Scores.from_json(json.loads(contents[file]))
        self.progress.figures(model.name, **self.results.row(model))
        self.progress.say(f"{model.name}: mAP {scores.map:.1%}  Rank-1 {scores.rank1:.1%}")

    def drop_features(self, iteration: int) -> None:
        """Delete the features of an iteration's model: the next iteration is trained by now.

        Those of pretraining stay, which a report compares with the result's.
        """
        if iteration > 0 and not self.config.keep_features:
            model = iteration_stage(iteration)
            self.run.drop(str(model.at("extract")), str(model.at("drop")))

    def choose(self, weights: Weights, features: LazyFeatures, labels: Labels | None) -> None:
        """Name the iteration whose model is the result, and see that it has features and scores.

        `weights` and `features` are of the newest model.
        """
        results = self.results
        if not results.models:
            return
        results.selected = results.models[-1]
        if self.config.select == "silhouette":
            if len(results.labellings) == len(results.models):
                self.estimate(FINAL, weights, features, labels)  # to judge the newest model
            judged = list(results.labellings.values())[1:]
            results.selected = label_health.best_model(results.models, judged)
            self.progress.say(f"selected by silhouette: {results.selected}")
        self._complete(results.selected, weights)

    def _complete(self, result: Stage, weights: Weights) -> None:
        """Features of query and gallery, and scores, for a result that lacks them."""
        is_newest = result == self.results.models[-1]
        if self.is_scored(result) and (is_newest or self.config.keep_features):
            return
        if not is_newest:
            files = artefacts.checkpoint_files(result.file("checkpoint"))
            contents = {name: self.run.read(name) for name in files}
            weights = artefacts.read_checkpoint(result.file("checkpoint"), contents)
        features = self._extract(result.at("extract-result"), weights, None, leads_on=False)
        if result not in self.results.scores:
            self.evaluate(result, features, is_result=True)

    def finish(self) -> dict[str, Any]:
        """Write summary.json and delete what only a resumed training would have needed."""
        summary = self.summary()
        self.run.write("summary.json", artefacts.json_bytes(summary))
        self.run.delete_folder("ray_train")
        return summary

    def summary(self) -> dict[str, Any]:
        """What summary.json holds, of as much as has been done."""
        seconds = sum(line["seconds"] for line in self.run.journal())
        return self.results.summary(self.config.seed, seconds)

    def _parts(self, features: FeatureBlocks, rows: NDArray[np.int64]) -> list[SomeFeatures]:
        """Features of these rows, of each part of the body."""
        stripes = self.config.network.stripes
        return [features.of(rows, part, stripes) for part in range(1 + stripes)]

    def _extract(
        self,
        stage: Stage,
        weights: Weights,
        rows: NDArray[np.int64] | None,
        leads_on: bool = True,
    ) -> LazyFeatures:
        """Features of these rows of the target's table, or of all; files have their rows only."""
        folder = stage.file("features" if rows is None else "training_features")
        rows = np.arange(len(self.target.table)) if rows is None else rows
        name, older = str(stage), f"{folder}.parquet"
        files = [older] if older in self.run.left(name) else block_files(folder, len(rows))

        def make() -> Contents:
            return extract(
                name, self.target, self.config, weights, self.workers, self.pixels, rows, folder
            )

        self._once(stage, files, make, leads_on, reads=False)

        @cache
        def features() -> FeatureBlocks:
            self.run.restore(name, make)
            return FeatureBlocks(self.run, self.run.left(name), rows)

        return features

    def _once(
        self,
        stage: Stage,
        files: list[str],
        make: Callable[[], Contents],
        leads_on: bool = True,
        made_on: dict[str, Any] | None = None,
        reads: bool = True,
    ) -> dict[str, bytes]:
        """`RunFolder.once`, shown and timed."""
        with self.progress.stage(str(stage)):
            return self.run.once(str(stage), files, make, leads_on, made_on, reads)

    def _checkpoint(
        self, model: Stage, train: Callable[[], Weights], on_workers: bool = True
    ) -> Weights:
        folder = model.file("checkpoint")
        config = self.config.model_dump(mode="json", exclude={"tracking"})
        metadata = {"stage": model.name, "config": config}
        about = made_on(self.resources) if on_workers else {}

        def make() -> Contents:
            if about and (note := other_workers(str(model), about, self.run.journal())):
                self.progress.note(note)
                self.progress.figures(str(model.at("train")), note=note)
            return artefacts.checkpoint_bytes(folder, train(), metadata)

        files = artefacts.checkpoint_files(folder)
        contents = self._once(model.at("train"), files, make, made_on=about)
        return artefacts.read_checkpoint(folder, contents)
