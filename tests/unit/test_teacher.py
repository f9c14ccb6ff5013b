"""The teacher: its mean, its checkpoints, its predictions."""

import pytest
import torch
from one_step import SGD, assert_same_bits, setting, step
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from daal.config import LossConfig
from daal.losses import soft_label_loss
from daal.optimizer import make_optimizer
from daal.teacher import Teacher


def moved(network, seed):
    """The same network with other weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


@pytest.mark.parametrize("momentum", [0.25, 0.75, 0.999])
def test_the_bits_and_names_of_release_0_1(momentum):
    network, _ = setting()
    mean = get_ema_multi_avg_fn(momentum)
    teacher = Teacher(network, momentum)
    reference = AveragedModel(network, multi_avg_fn=mean, use_buffers=True)  # release 0.1's
    for seed in range(3):
        teacher.follow(moved(network, seed))
        reference.update_parameters(network)
        found, expected = teacher.state_dict(), reference.state_dict()
        assert list(found) == list(expected)
        assert bool(found["n_averaged"]) == bool(expected["n_averaged"])
        floats = {name: t for name, t in expected.items() if t.is_floating_point()}
        assert_same_bits({name: found[name] for name in floats}, floats)
        teacher = Teacher(network, momentum)  # resumes from such a checkpoint
        teacher.load_state_dict(expected)
    assert not any(module.training for module in teacher.module.modules())


def test_its_predictions_are_soft_labels():
    network, batch = setting()
    teacher = Teacher(network, momentum=0.5)
    with torch.no_grad():
        taught = teacher(batch.images_BCHW, batch.num_source).target_logits_BK.softmax(1)
        own = network(batch.images_BCHW, batch.num_source).target_logits_BK
    expected = float(soft_label_loss(own, taught))
    network, batch = setting()  # the forward above moved statistics
    teacher = Teacher(network, momentum=0.5)
    weights = LossConfig(source_weight=0, target_weight=0, domain_weight=0, teacher_weight=2.0)
    terms = step(network, batch, make_optimizer(network, SGD), weights, teacher=teacher)
    assert float(terms.teacher) == pytest.approx(expected, rel=1e-4)
    assert float(terms.total) == pytest.approx(2 * expected, rel=1e-4)
