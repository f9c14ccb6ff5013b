"""One training as each worker runs it, from a starting network to a trained one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
import torch
from torch import distributed

from daal.config import Config, FitConfig
from daal.data.plan import Plan
from daal.errors import TrainingDiverged
from daal.host_copy import HostCopy
from daal.losses import LossTerms
from daal.nn.network import DaalNetwork
from daal.optimizer import set_learning_rate
from daal.step import raise_if_diverged
from pipelines.images.pixels import pixel_reader
from pipelines.images.prefetch import ahead
from pipelines.images.stream import FedBatch, StreamSource, kept_batches, streamed_batches
from pipelines.training.diverged_step import keep_step
from pipelines.training.fit_log import FitLog
from pipelines.training.step_function import step_function
from pipelines.training.train_batch import BatchMaker, HostBatch, Labels
from pipelines.training.train_state import TrainState, Weights
from pipelines.workers.group import Worker


@dataclass(frozen=True)
class FitJob:
    """One training. Large things are references into the object store."""

    stage: str
    config: Config
    fit: FitConfig
    iteration: int
    stream: StreamSource
    labels: ray.ObjectRef[Any]  # Labels
    start: ray.ObjectRef[Any]  # Weights to start from, {} for none

    def run(self, worker: Worker) -> tuple[Weights, dict[str, Any]]:
        """All steps of the plan, or those after the last checkpoint of this stage.

        Returns rank 0's weights, and figures: where pixels came from (`images`: jpeg, decoded or
        device), `first_step` (above 0 if it resumed from a checkpoint), ...

        Raises:
            TrainingDiverged: on every worker, with the weights of the step before.
        """
        config, fit = self.config, self.fit
        labels: Labels = ray.get(self.labels)
        plan: Plan = ray.get(self.stream.plan)
        network = build_network(config, labels, ray.get(self.start))
        state = TrainState.start(self.stage, worker, network, plan, fit, config)
        maker = BatchMaker(labels, config, self.iteration, worker.device, network.statistics)
        first_step = state.next_step
        images, batches = self._batches(worker, plan, maker, first_step)
        state.network.train()
        take_step = step_function(state, maker, config)
        log = FitLog(self.stage, worker, plan)
        earlier = None  # the step before, which a GPU may still be working on
        for step, parts in log.arriving(batches):
            worker.reach(self.stage, step)
            state.writer.raise_if_failed()
            rate = set_learning_rate(
                state.optimizer, fit, step, plan.steps_per_epoch, self.iteration
            )
            terms = take_step(parts)
            last = step + 1 == plan.num_steps
            end_of_epoch = (step + 1) % plan.steps_per_epoch == 0
            leaving = end_of_epoch and worker.node_leaves()
            epochs = plan.epoch_of(step) + 1
            due = end_of_epoch and epochs % config.checkpoint_every_epochs == 0
            saves = last or leaving or due
            if earlier is not None:
                self._raise_if_diverged(state, maker, *earlier)
            earlier = HostCopy(state.diverged), terms, step, parts
            if saves or worker.device.type == "cpu":
                self._raise_if_diverged(state, maker, *earlier)
            log.step_done(step, terms, rate)
            if saves:
                state.report(step + 1)
                worker.reach(self.stage, step, "reported")
            if last or leaving:
                state.writer.finish()
            if end_of_epoch:
                # DDP sorts its buckets after its first step, and with them the order of additions.
                # With a new DDP wherever a run may resume, a resumed run adds in the same order.
                if worker.world_size > 1:
                    take_step = step_function(state, maker, config)
                log.epoch_done()

        figures = {
            "workers": worker.world_size,
            "device": str(worker.device),
            "images": images,
            "first_step": first_step,
            "times": asdict(log.times),
        }
        return (state.result() if worker.rank == 0 else {}), figures

    def _batches(
        self, worker: Worker, plan: Plan, maker: BatchMaker, first_step: int
    ) -> tuple[str, Iterator[tuple[int, list[HostBatch]]]]:
        """Where pixels come from, and the parts of each step's batch, prepared on the host."""
        config, stream = self.config, self.stream
        share = worker.rank, worker.world_size
        fed: Iterator[FedBatch]
        if stream.source.keeps(plan.source_rows) and stream.target.keeps(plan.target_rows):
            source = pixel_reader(worker, stream.source, self.config)
            target = pixel_reader(worker, stream.target, self.config)
            images = "device" if source.on_device and target.on_device else "decoded"
            fed = kept_batches(plan, source, target, first_step, *share)
        else:
            images = "jpeg"
            fed = streamed_batches(stream, first_step, plan.num_steps, *share)

        def on_host(batch: FedBatch) -> tuple[int, list[HostBatch]]:
            parts = (batch.part(at, config.accumulate) for at in range(config.accumulate))
            return batch.step, [maker.on_host(part, plan.epoch_of(batch.step)) for part in parts]

        batches = map(on_host, fed)
        # On a CPU, a thread would take the step's own core.
        return images, ahead(batches, 2) if worker.device.type == "cuda" else batches

    def _raise_if_diverged(
        self,
        state: TrainState,
        maker: BatchMaker,
        diverged: HostCopy,
        terms: LossTerms,
        step: int,
        parts: Sequence[HostBatch],
    ) -> None:
        """The check of `step`. The step is kept on workers where it can be computed again."""
        try:
            raise_if_diverged(diverged, terms, step)
        except TrainingDiverged as error:
            worker = state.worker
            where = ""
            if worker.rank == 0 or not all(map(math.isfinite, terms.as_dict().values())):
                name = f"{self.stage}/diverged-rank-{worker.rank}"
                batches = [maker.on_device(part.to(worker.device)) for part in parts]
                kept = keep_step(worker.folder, name, state.network, batches, self.config)
                where = f" The step is kept: daal replay {kept}"
            if worker.world_size > 1:
                distributed.barrier()  # the first worker that raises ends the others
            raise TrainingDiverged(f"{error}{where}") from None


def build_network(config: Config, labels: Labels, start: Weights) -> DaalNetwork:
    """The network of one fit: weights of `start`, and a target head from the cluster centroids.

    Heads that `start` doesn't have are drawn with the run's seed, the same on every worker.
    Backbone weights come with `start`: a weights file need not exist on every node.
    """
    torch.manual_seed(config.seed)
    adapting = labels.num_clusters > 0
    domain_head = adapting and config.network.specific_branch and labels.num_source_ids > 0
    network = DaalNetwork(
        config.network.model_copy(update={"weights": "none"}),
        num_source_ids=labels.num_source_ids,
        num_clusters=labels.num_clusters,
        domain_head=domain_head,
        exchange=domain_head and config.loss.exchange_weight > 0,
        input=config.input,
    )
    if start:
        carried = [name for name in start if not name.startswith("target_head.")]
        network.load_matching({name: torch.tensor(start[name]) for name in carried})
    if network.target_head is not None:
        network.target_head.start_from(torch.tensor(labels.centroids_KC))
    return network
