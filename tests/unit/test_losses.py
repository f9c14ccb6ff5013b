"""Eq. 3, 5, 6 and 7: a case computed by hand and a property of each."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from daal.losses import (
    domain_loss,
    hard_label_loss,
    soft_label_loss,
    total_loss,
    triplet_loss,
)

LOG3 = math.log(3.0)
# Probabilities (3/4, 1/4) and (1/4, 3/4).
LOGITS = torch.tensor([[LOG3, 0.0], [0.0, LOG3]])


def test_eq3__hand_computed() -> None:
    # -log 3/4 and -log 1/4
    expected = (-math.log(0.75) - math.log(0.25)) / 2
    assert math.isclose(
        hard_label_loss(LOGITS, torch.tensor([0, 0])).item(), expected, rel_tol=1e-6
    )


def test_eq5__hand_computed() -> None:
    weights = torch.tensor([[0.9, 0.5], [0.1, 0.2]])  # rows need not sum to 1
    first = -0.9 * math.log(0.75) - 0.5 * math.log(0.25)
    second = -0.1 * math.log(0.25) - 0.2 * math.log(0.75)
    loss = soft_label_loss(LOGITS, weights).item()
    assert math.isclose(loss, (first + second) / 2, rel_tol=1e-6)


def test_eq6__hand_computed() -> None:
    # The source row is believed with 3/4, the target row with 3/4.
    assert math.isclose(
        domain_loss(LOGITS, torch.tensor([0, 1])).item(), -math.log(0.75), rel_tol=1e-6
    )


def test_eq7__hand_computed() -> None:
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
def test_eq5__is_eq3_for_one_hot_weights_and_linear_in_them(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = case
    one_hot = torch.nn.functional.one_hot(labels, 5).float()
    assert torch.allclose(soft_label_loss(logits, one_hot), hard_label_loss(logits, labels))
    assert torch.allclose(
        soft_label_loss(logits, 3 * one_hot), 3 * soft_label_loss(logits, one_hot)
    )


@settings(max_examples=30)
@given(logits_and_labels)
def test_eq3__of_any_case__and_eq6_is_shift_invariant(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = case
    rows = zip(logits.double().tolist(), labels.tolist(), strict=True)
    expected = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    loss = hard_label_loss(logits, labels).item()
    assert math.isclose(loss, sum(expected) / len(expected), rel_tol=1e-4, abs_tol=1e-5)
    assert torch.allclose(
        domain_loss(logits[:, :2], labels % 2),
        domain_loss(logits[:, :2] + 7, labels % 2),
        atol=1e-5,
    )


@settings(max_examples=30)
@given(logits_and_labels)
def test_eq7__source_rows_do_not_see_the_target_term(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = case
    logits = logits.clone().requires_grad_()
    terms = total_loss(
        logits[:3], labels[:3], logits[3:], torch.full((3, 5), 0.2), logits[:, :2], labels % 2
    )
    (gradient,) = torch.autograd.grad(terms.target, logits)
    assert gradient[:3].abs().max() == 0
    assert gradient[3:].abs().max() > 0


def test_terms_without_logits_are_zero() -> None:
    terms = total_loss(LOGITS, torch.tensor([0, 1]), None, None, None, None)
    assert terms.target.item() == terms.domain.item() == 0
    assert terms.total.item() == terms.source.item()
    empty = soft_label_loss(torch.empty(0, 3, requires_grad=True), torch.empty(0, 3))
    assert empty.item() == 0


def test_softmax_triplet__hand_computed() -> None:
    # On a line: images 0 and 4 of one label, 1 and 10 of another.
    features = torch.tensor([[0.0], [4.0], [1.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 1])
    pairs = [(4, 1), (4, 3), (9, 1), (9, 6)]  # farthest of its own, nearest of the others
    expected = sum(math.log(1 + math.exp(own - other)) for own, other in pairs) / 4
    assert math.isclose(triplet_loss(features, labels).item(), expected, rel_tol=1e-5)


def test_triplet_with_a_margin__hand_computed() -> None:
    features = torch.tensor([[0.0], [4.0], [1.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 1])
    expected = ((4 - 1 + 0.5) + (4 - 3 + 0.5) + (9 - 1 + 0.5) + (9 - 6 + 0.5)) / 4
    assert math.isclose(triplet_loss(features, labels, 0.5).item(), expected, rel_tol=1e-6)
    # A gap wider than the margin costs nothing.
    far = torch.tensor([[0.0], [1.0], [50.0], [51.0]])
    assert triplet_loss(far, labels, 0.5).item() == 0


def test_softmax_triplet__only_images_with_both_kinds_of_others_count() -> None:
    features = torch.tensor([[0.0], [4.0], [1.0]], requires_grad=True)
    some = triplet_loss(features, torch.tensor([0, 0, 1]))
    expected = (math.log(1 + math.exp(4 - 1)) + math.log(1 + math.exp(4 - 3))) / 2
    assert math.isclose(some.item(), expected, rel_tol=1e-5)
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])):
        none = triplet_loss(features, labels)
        (gradient,) = torch.autograd.grad(none, features)
        assert none.item() == 0 and bool((gradient == 0).all())


def test_softmax_triplet__copies_have_a_finite_gradient() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad is not None and bool(features.grad.isfinite().all())
