"""What a step takes: drawn and looked up on the host, computed on the device."""

import numpy as np
import pytest
import torch

from cluster.soft_labels import hard_label_weights, lsr_weights, soft_label_weights
from daal.config import Config
from pipelines.images.stream import FedBatch
from pipelines.training.train_batch import BatchMaker, Labels

CPU = torch.device("cpu")
SIZE = (64, 32)


def labels(stripes=0):
    draw = np.random.default_rng(0)
    return Labels(
        np.arange(9) % 3,
        3,
        np.arange(20) % 4,
        draw.standard_normal((20, 6)).astype(np.float32),
        draw.standard_normal((4, 6)).astype(np.float32),
        np.arange(20 * stripes).reshape(20, stripes) % 4 if stripes else None,
    )


def config(**soft_labels):
    return Config.model_validate({
        "input": {"height": SIZE[0], "width": SIZE[1]}, "soft_labels": soft_labels,
    })  # fmt: skip


def fed(source=4, target=6, step=2):
    draw = np.random.default_rng(step)
    images = torch.from_numpy(draw.integers(0, 256, (source + target, *SIZE, 3), np.uint8))
    return FedBatch(step, images, np.arange(source), np.arange(target) + 10)


@pytest.mark.parametrize("kind", ["soft", "soft-literal", "hard", "lsr"])
def test_labels_of_each_kind(kind):
    known, settings = labels(stripes=2), config(target_labels=kind)
    maker = BatchMaker(known, settings, 1, CPU)
    made = maker.on_host(fed(), epoch=0)
    assert (made.features_TC is None) == (kind in ("hard", "lsr"))
    batch = maker.on_device(made)
    assert batch.source_labels_S.tolist() == [0, 1, 2, 0]
    assert batch.target_labels_T.tolist() == [2, 3, 0, 1, 2, 3]
    assert np.array_equal(batch.stripe_labels_TS, known.stripe_labels_NS[10:16])
    pseudo_labels = torch.from_numpy(known.pseudo_labels_N)[10:16]
    if kind == "hard":
        expected = hard_label_weights(pseudo_labels, 4)
    elif kind == "lsr":
        expected = lsr_weights(pseudo_labels, 4)
    else:
        expected = soft_label_weights(
            torch.from_numpy(known.features_NC)[10:16],
            torch.from_numpy(known.centroids_KC),
            pseudo_labels,
            epsilon=settings.soft_labels.epsilon,
            form="literal" if kind == "soft-literal" else "normalized",
            min_sq_distance=1e-3,
        )
    np.testing.assert_array_equal(batch.target_weights_TK, expected)


def test_a_sample_is_drawn_by_its_row_domain_and_time_not_by_its_part():
    maker = BatchMaker(labels(), config(), 1, CPU)
    whole, again = maker.on_host(fed(), epoch=0), maker.on_host(fed(), epoch=1)
    parts = [maker.on_host(fed().part(at, 2), epoch=0).table_BX for at in range(2)]
    source_and_target = [part[:2] for part in parts] + [part[2:] for part in parts]
    assert torch.cat(source_and_target).equal(whole.table_BX)
    assert not again.table_BX.equal(whole.table_BX)
    assert len(whole.table_BX.unique(dim=0)) == len(whole.table_BX)
