"""Eq. 3, 5, 6 and 7: a case computed by hand and a property of each."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daal.losses import domain_loss, hard_label_loss, soft_label_loss, total_loss, triplet_loss

LOG3 = math.log(3.0)
# Probabilities (3/4, 1/4) and (1/4, 3/4).
LOGITS = torch.tensor([[LOG3, 0.0], [0.0, LOG3]])


def test_eq3_eq5_eq6__hand_computed():
    quarter, three_quarters = -math.log(0.25), -math.log(0.75)
    weights = torch.tensor([[0.9, 0.5], [0.1, 0.2]])  # rows need not sum to 1
    soft = 0.9 * three_quarters + 0.5 * quarter + 0.1 * quarter + 0.2 * three_quarters
    for loss, expected in (
        (hard_label_loss(LOGITS, torch.tensor([0, 0])), (three_quarters + quarter) / 2),
        (soft_label_loss(LOGITS, weights), soft / 2),
        (domain_loss(LOGITS, torch.tensor([0, 1])), three_quarters),
    ):
        assert math.isclose(loss.item(), expected, rel_tol=1e-6)


def test_eq7__hand_computed():
    terms = total_loss(
        LOGITS[:1], torch.tensor([0]), LOGITS[1:], torch.tensor([[1.0, 0.0]]),
        LOGITS, torch.tensor([0, 1]),
    )  # fmt: skip
    assert math.isclose(terms.source.item(), -math.log(0.75), rel_tol=1e-6)
    assert math.isclose(terms.target.item(), -math.log(0.25), rel_tol=1e-6)
    assert math.isclose(terms.total.item(), -2 * math.log(0.75) - math.log(0.25), rel_tol=1e-6)


logits_and_labels = st.integers(0, 2**31).map(
    lambda seed: (
        torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 3,
        torch.randint(5, (6,), generator=torch.Generator().manual_seed(seed)),
    )
)


@settings(max_examples=30)
@given(logits_and_labels)
def test_eq5__is_eq3_for_one_hot_weights_and_linear_in_them(case):
    logits, labels = case
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    assert torch.allclose(soft_label_loss(logits, one_hot), hard_label_loss(logits, labels))
    assert torch.allclose(
        soft_label_loss(logits, 3 * one_hot), 3 * soft_label_loss(logits, one_hot)
    )


FEATURES, LABELS = torch.tensor([[0.0], [4.0], [1.0], [10.0]]), torch.tensor([0, 0, 1, 1])
PAIRS = [(4, 1), (4, 3), (9, 1), (9, 6)]  # farthest of its own label, nearest of the others


def test_triplet__hand_computed():
    soft = sum(math.log(1 + math.exp(own - other)) for own, other in PAIRS) / 4
    assert math.isclose(triplet_loss(FEATURES, LABELS).item(), soft, rel_tol=1e-5)
    hinge = sum(own - other + 0.5 for own, other in PAIRS) / 4
    assert math.isclose(triplet_loss(FEATURES, LABELS, 0.5).item(), hinge, rel_tol=1e-6)
    # A gap wider than the margin costs nothing.
    assert triplet_loss(torch.tensor([[0.0], [1.0], [50.0], [51.0]]), LABELS, 0.5).item() == 0


def test_softmax_triplet__only_images_with_both_kinds_of_others_count():
    features = FEATURES[:3].clone().requires_grad_()
    some = triplet_loss(features, torch.tensor([0, 0, 1]))
    expected = (math.log(1 + math.exp(4 - 1)) + math.log(1 + math.exp(4 - 3))) / 2
    assert math.isclose(some.item(), expected, rel_tol=1e-5)
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])):
        none = triplet_loss(features, labels)
        (gradient,) = torch.autograd.grad(none, features)
        assert none.item() == 0 and bool((gradient == 0).all())


def test_softmax_triplet__copies_have_a_finite_gradient():
    features = torch.ones(4, 3, requires_grad=True)
    triplet_loss(features, LABELS).backward()
    assert features.grad is not None and bool(features.grad.isfinite().all())
