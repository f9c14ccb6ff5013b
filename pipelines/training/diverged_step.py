"""A training step with a loss or gradient that isn't finite: kept, and computed again."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from daal import checkpoint
from daal.config import Config
from daal.errors import CheckpointError
from daal.load_config import check_config
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.precision import mixed_precision
from daal.step import TrainBatch, train_step
from pipelines.run import artefacts
from pipelines.run.folder import RunFolder

NETWORK, BATCH = "network.", "batch"


class Replayed(NamedTuple):
    """Loss terms of the step, and the first module whose output isn't finite."""

    terms: dict[str, float]
    module: str | None
    diverged: bool


def keep_step(
    folder: RunFolder,
    name: str,
    network: DaalNetwork,
    batches: Sequence[TrainBatch],
    config: Config,
) -> str:
    """Write the weights before the step and this worker's batches; returns where."""
    tensors = {f"{NETWORK}{n}": t for n, t in network.state_dict().items()}
    for number, batch in enumerate(batches):
        given = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors |= {f"{BATCH}{number}.{n}": t for n, t in given.items() if t is not None}
    metadata = {"config": config.model_dump(mode="json")}
    arrays = {n: t.cpu().contiguous().numpy() for n, t in tensors.items()}
    for file, data in artefacts.checkpoint_bytes(name, arrays, metadata).items():
        folder.write(file, data)
    return f"{folder.uri}/{name}"


def replay(directory: Path) -> Replayed:
    """Compute a kept step on this machine's CPU, without the other workers.

    Losses and statistics of the whole batch (triplets, shared BatchNorm) are those of this worker's
    part of it. A teacher's loss is left out.

    Raises:
        CheckpointError: the folder isn't one that `keep_step` wrote, or is damaged.
    """
    tensors, metadata = checkpoint.load(directory)
    if not any(name.startswith(BATCH) for name in tensors):
        raise CheckpointError(
            f"{directory} is not a kept step; give the folder that a diverged training has named, "
            "STAGE/diverged-rank-N in its run."
        )
    config = check_config(metadata["config"])
    state = {n.removeprefix(NETWORK): t for n, t in tensors.items() if n.startswith(NETWORK)}
    clusters = state.get("target_head.fc.weight", state.get("target_head.memory_KC", ()))
    network = DaalNetwork(
        config.network.model_copy(update={"weights": "none"}),
        num_source_ids=len(state.get("source_head.fc.weight", ())),
        num_clusters=len(clusters),
        domain_head="domain_head.weight" in state,
        input=config.input,
    ).train()
    network.load_state_dict(state)
    diverged = torch.zeros(())
    not_finite = _watch_outputs(network)
    terms = train_step(
        network,
        _batches(tensors),
        make_optimizer(network, config.adapt.optim),
        config.loss,
        diverged,
        lambda flag: None,
        mixed_precision(torch.device("cpu"), config.mixed_precision),
    )
    return Replayed(terms.as_dict(), next(iter(not_finite), None), bool(diverged))


def _batches(tensors: dict[str, Tensor]) -> list[TrainBatch]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(BATCH):
            number, _, field = name.partition(".")
            found.setdefault(number, {})[field] = tensor
    nothing = dict.fromkeys(field.name for field in fields(TrainBatch))
    return [TrainBatch(**(nothing | found[number])) for number in sorted(found)]  # type: ignore[arg-type]


def _watch_outputs(network: nn.Module) -> list[str]:
    """Names of modules whose output isn't finite, innermost first, filled during a forward."""
    not_finite: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                not_finite.append(name)

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(look(name))
    return not_finite
