"""The teacher: its mean, its checkpoints, its predictions."""

import pytest
import torch
from one_step import SGD, setting, step
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from daal.config import LossConfig
from daal.losses import soft_label_loss
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.teacher import Teacher


def moved(network: DaalNetwork, seed: int) -> DaalNetwork:
    """The same network with other weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


def averaged(network: DaalNetwork, momentum: float) -> AveragedModel:
    """What release 0.1 had for a teacher."""
    mean = get_ema_multi_avg_fn(momentum)
    return AveragedModel(network, multi_avg_fn=mean, use_buffers=True)


def floats(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("momentum", [0.25, 0.75, 0.999])
def test_the_bits_and_names_of_release_0_1(momentum: float) -> None:
    network, _ = setting()
    teacher, reference = Teacher(network, momentum), averaged(network, momentum)
    for seed in range(3):
        teacher.follow(moved(network, seed))
        reference.update_parameters(network)
        found, expected = teacher.state_dict(), reference.state_dict()
        assert list(found) == list(expected)
        assert bool(found["n_averaged"]) == bool(expected["n_averaged"])
        for name, tensor in floats(expected).items():
            assert found[name].equal(tensor), name
    assert not any(module.training for module in teacher.module.modules())


def test_reads_a_checkpoint_of_release_0_1_and_follows_as_it_would_have() -> None:
    network, _ = setting()
    reference = averaged(network, 0.9)
    for seed in range(2):
        reference.update_parameters(moved(network, seed))
    teacher = Teacher(network, 0.9)
    teacher.load_state_dict(reference.state_dict())
    teacher.follow(moved(network, 2))
    reference.update_parameters(network)
    found = teacher.state_dict()
    assert all(found[name].equal(t) for name, t in floats(reference.state_dict()).items())


def test_follows_by_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU one for each tensor would take longer than the step's own."""
    network, _ = setting()
    teacher = Teacher(network, 0.9)
    teacher.follow(network)
    calls = []
    lerp = torch._foreach_lerp_
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *given: calls.append(lerp(*given)))
    for name in ("copy_", "mul", "lerp_"):
        monkeypatch.setattr(Tensor, name, lambda *_: pytest.fail("a launch of its own"))
    teacher.follow(network)
    assert len(calls) == 1


def test_its_predictions_are_soft_labels() -> None:
    network, batch = setting()
    teacher = Teacher(network, momentum=0.5)
    with torch.no_grad():
        taught = teacher(batch.images_BCHW, batch.num_source).target_logits_BK.softmax(1)  # type: ignore[union-attr]
        own = network(batch.images_BCHW, batch.num_source).target_logits_BK
    expected = float(soft_label_loss(own, taught))
    network, batch = setting()  # the forward above moved statistics
    teacher = Teacher(network, momentum=0.5)
    weights = LossConfig(source_weight=0, target_weight=0, domain_weight=0, teacher_weight=2.0)
    terms = step(network, batch, make_optimizer(network, SGD), weights, teacher=teacher)
    assert terms.teacher is not None
    assert float(terms.teacher) == pytest.approx(expected, rel=1e-4)
    assert float(terms.total) == pytest.approx(2 * expected, rel=1e-4)
