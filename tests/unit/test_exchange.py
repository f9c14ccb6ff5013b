"""Exchanged surroundings: which images, what the heads see of them, and Eq. 7 on it."""

import numpy as np
import pytest
import torch
from one_step import OFF

from daal import losses
from daal.config import LossConfig, NetworkConfig, OptimConfig
from daal.data.plan import Batch
from daal.nn.attention import exchange_surroundings
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer
from daal.step import TrainBatch, train_step

CONFIG = NetworkConfig(backbone="resnet18", weights="none", identity_head="unit", last_stride=1)


def test_exchange__one_images_person_before_anothers_surroundings() -> None:
    # Two cells; the source image has its person in the left one, the target image in the right one.
    features = torch.tensor([[[[3.0, 5.0]]], [[[7.0, 11.0]]]]).expand(2, 4, 1, 2)
    attention = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]).expand(2, 4, 1, 2)
    mixed = exchange_surroundings(features, attention, num_source=1)
    assert mixed[:, 0, 0].tolist() == [[3 + 7, 0], [0, 11 + 5]]
    # What differs between channels alone exchanges nothing of a place.
    channels = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(2, 4, 1, 2)
    halves = exchange_surroundings(features, channels, num_source=1)
    assert torch.equal(halves, (features + features.flip(0)) / 2)


def test_exchange__sources_get_surroundings_of_the_target() -> None:
    features = torch.arange(6.0).view(6, 1, 1, 1)
    mixed = exchange_surroundings(features, torch.zeros_like(features), num_source=2)
    assert mixed.flatten().tolist() == [2, 3, 4, 5, 0, 1]


@pytest.mark.parametrize(("num_source", "num_target"), [(4, 4), (4, 12), (8, 4)])
def test_exchange__has_the_same_pairs_on_any_number_of_workers(
    num_source: int, num_target: int
) -> None:
    batch = Batch(0, np.arange(num_source), 100 + np.arange(num_target))

    def pairs(num_workers: int) -> set[tuple[float, float]]:
        found = set()
        for rank in range(num_workers):
            share = batch.share(rank, num_workers)
            names = torch.from_numpy(np.concatenate([share.source, share.target])).double()
            names = names.view(-1, 1, 1, 1)
            others = exchange_surroundings(names, torch.zeros_like(names), len(share.source))
            found |= set(zip(names.flatten().tolist(), others.flatten().tolist(), strict=True))
        return found

    assert len(pairs(1)) == num_source + num_target
    assert pairs(1) == pairs(2) == pairs(4)


def network_and_batch(**changes: object) -> tuple[DaalNetwork, TrainBatch]:
    torch.manual_seed(0)
    network = DaalNetwork(CONFIG.model_copy(update=changes), 3, 4, True, exchange=True)
    weights_TK = torch.softmax(torch.randn(4, 4), dim=1)
    images_BCHW = torch.randn(8, 3, 64, 32)
    batch = TrainBatch(images_BCHW, torch.tensor([0, 1, 2, 0]), weights_TK, torch.arange(4))
    return network.train(), batch


def test_step__adds_eq_7_on_the_mixtures() -> None:
    network, batch = network_and_batch()
    shared, specific, attention = network.feature_maps(batch.images_BCHW, 4)
    a = attention.mean(1, keepdim=True)
    features = shared + specific
    mixed = (a * features + ((1 - a) * features).roll(-4, 0)).mean((2, 3))
    assert network.source_head and network.target_head and network.domain_head
    expected = (
        losses.hard_label_loss(network.source_head(mixed[:4]), batch.source_labels_S)
        + losses.soft_label_loss(network.target_head(mixed[4:]), batch.target_weights_TK)
        + losses.domain_loss(network.domain_head(mixed), 1 - batch.domains_B)
    )
    weights = LossConfig(exchange_weight=0.25)
    optimizer = make_optimizer(network, OptimConfig())
    terms = train_step(network, [batch], optimizer, weights, torch.zeros(()), lambda _: None, OFF)
    assert terms.exchange is not None
    assert terms.exchange.item() == pytest.approx(expected.item(), rel=1e-4)
    eq_7 = terms.source + terms.target + terms.domain
    assert terms.total.item() == pytest.approx((eq_7 + 0.25 * expected).item(), rel=1e-4)


def test_mixtures_do_not_count_in_the_necks_statistics__and_are_made_in_training_only() -> None:
    changes = {"neck": "bnneck", "target_head": "memory", "domain_batch_norm": True}
    network, batch = network_and_batch(**changes)
    assert network(batch.images_BCHW, 4).exchanged is not None
    torch.manual_seed(0)
    plain = DaalNetwork(CONFIG.model_copy(update=changes), 3, 4, True).train()
    assert plain(batch.images_BCHW, 4).exchanged is None
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    assert network.neck.training
    assert network.eval()(batch.images_BCHW, 4).exchanged is None


@pytest.mark.parametrize("mode", ["none", "independent"])
def test_exchange__needs_one_attention_map_and_a_domain_head(mode: str) -> None:
    attention = CONFIG.attention.model_copy(update={"mode": mode})
    with pytest.raises(ValueError, match="residual attention"):
        DaalNetwork(CONFIG.model_copy(update={"attention": attention}), 3, 4, True, exchange=True)
    with pytest.raises(ValueError, match="domain head"):
        DaalNetwork(CONFIG, 3, 4, exchange=True)
