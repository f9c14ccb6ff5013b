"""One update, the finite check that stops it, and the schedule."""

from dataclasses import replace

import pytest
import torch
from one_step import OFF, OPTIMIZERS, SGD, assert_same_bits, everything, setting, step
from torch.nn.parallel import DistributedDataParallel

from daal.config import AdaptConfig, LossConfig, NetworkConfig, OptimConfig
from daal.errors import TrainingDiverged
from daal.losses import LossTerms
from daal.nn.network import DaalNetwork
from daal.optimizer import make_optimizer, set_learning_rate
from daal.precision import mixed_precision
from daal.step import TrainBatch, raise_if_diverged, train_step


def test_steps_lower_every_term_of_eq7():
    network, batch = setting()
    batch = replace(batch, target_weights_TK=torch.eye(4))
    optimizer = make_optimizer(network, SGD)
    first = step(network, batch, optimizer).as_dict()
    for _ in range(15):
        last = step(network, batch, optimizer).as_dict()
    for name in ("source", "target", "domain", "total"):
        assert last[name] < first[name], name


def test_loss_weights_of_zero_leave_their_heads_alone():
    network, batch = setting()
    before = {name: tensor.clone() for name, tensor in network.domain_head.state_dict().items()}
    optimizer = make_optimizer(network, OptimConfig(lr_new=0.1), weight_decay=0)
    step(network, batch, optimizer, LossConfig(domain_weight=0))
    for name, tensor in network.domain_head.state_dict().items():
        assert torch.equal(tensor, before[name])


def halves(batch):
    return [
        TrainBatch(
            batch.images_BCHW[at::2], batch.source_labels_S[at::2], batch.target_weights_TK[at::2]
        )
        for at in (0, 1)
    ]


def test_micro_batches_give_the_gradient_of_the_whole():
    results = []
    for cut in (lambda batch: [batch], halves):
        network, batch = setting()
        network.eval()  # BatchNorm would see each micro-batch apart
        optimizer = make_optimizer(network, SGD)
        terms = step(network, cut(batch), optimizer)
        results.append({**everything(network, optimizer), **terms.detached()})
    assert not terms.total.requires_grad and not terms.source.requires_grad
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], rtol=1e-4, atol=1e-6)


def test_micro_batches__gradients_travel_once(process_group):
    network, batch = setting()
    model = DistributedDataParallel(network)
    sent = []

    def send(_, bucket):
        sent.append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, send)
    step(model, [*halves(batch), *halves(batch)], make_optimizer(network, SGD))
    assert sum(sent) == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("num_before", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_not_finite__neither_weights_nor_state_change_from_then_on(name, num_before):
    network, batch = setting()
    optimizer = make_optimizer(network, OPTIMIZERS[name])
    diverged = torch.zeros(())
    for _ in range(num_before):
        step(network, batch, optimizer, diverged=diverged)
    assert float(diverged) == 0
    # Adam makes its zeros with the first step, taken or not.
    before = dict(network.named_parameters()) if num_before == 0 else everything(network, optimizer)
    before = {name: tensor.detach().clone() for name, tensor in before.items()}
    poisoned = batch.images_BCHW.clone()
    poisoned[0, 0, 0, 0] = torch.nan
    for images_BCHW in (poisoned, batch.images_BCHW):
        step(network, replace(batch, images_BCHW=images_BCHW), optimizer, diverged=diverged)
        assert float(diverged) == 1
        after = everything(network, optimizer)
        assert_same_bits({name: after[name] for name in before}, before)
        assert all(not tensor.any() for name, tensor in after.items() if name not in before)


def test_gradient_that_is_not_finite_under_a_finite_loss():
    network, batch = setting()
    next(network.parameters()).register_hook(lambda gradient: gradient.fill_(torch.inf))
    optimizer, diverged = make_optimizer(network, SGD), torch.zeros(())
    terms = step(network, batch, optimizer, diverged=diverged)
    assert torch.isfinite(terms.total) and float(diverged) == 1


def test_not_finite_on_another_worker():
    network, batch = setting()
    optimizer, diverged = make_optimizer(network, SGD), torch.zeros(())
    before, others = everything(network, optimizer), lambda flag: flag.fill_(1.0)
    train_step(network, [batch], optimizer, LossConfig(), diverged, others, OFF)
    assert_same_bits(everything(network, optimizer), before)


def test_a_diverged_run_says_where_and_what_to_do():
    terms = LossTerms(*torch.tensor([1.0, torch.inf, 0.5, torch.inf]).unbind())
    raise_if_diverged(torch.tensor(0.0), terms, 6)
    with pytest.raises(TrainingDiverged, match=r"step 7 .*'target': inf.*lower optim.lr_backbone"):
        raise_if_diverged(torch.tensor(1.0), terms, 6)


def test_bf16_on_cpus__no_garbage_gradient_on_maps_one_pixel_wide():
    """Without the fp32 depthwise layer, most of these steps have gradients of 1e15 and more."""
    torch.manual_seed(0)
    network = DaalNetwork(
        NetworkConfig(backbone="resnet18", weights="none", identity_head="unit"), 120
    )
    network.train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, OptimConfig())
    images = torch.randn(8, 3, 64, 32).to(memory_format=torch.channels_last)
    bf16 = mixed_precision(torch.device("cpu"), wanted=True)
    for number in range(20):
        set_learning_rate(optimizer, AdaptConfig(), number, 100)
        batch = TrainBatch(images, torch.randint(120, (8,)), None)
        step(network, batch, optimizer, autocast=bf16)
        worst = max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None)
        assert worst < 100, number


@pytest.mark.parametrize("heads", [{"identity_head": "unit"}, {"target_head": "memory"}])
def test_scaled_logits_are_float32_under_autocast(heads):
    """Of 20 to 64 times a cosine, bf16 would lose up to a quarter."""
    network, _ = setting(**heads)
    features_BC = torch.randn(4, network.num_features).bfloat16()
    for head in (network.source_head, network.target_head):
        if getattr(head, "unit", True):
            expected_BK = head(features_BC)
            with torch.autocast("cpu", torch.bfloat16):
                found_BK = head(features_BC)
            assert found_BK.dtype is torch.float32
            assert found_BK.equal(expected_BK)


def test_without_mixed_precision__a_gpu_takes_no_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled, cache_enabled: enabled)
    for wanted in (False, True):
        assert mixed_precision(torch.device("cuda"), wanted) is wanted
        assert torch.backends.cudnn.allow_tf32 is wanted
