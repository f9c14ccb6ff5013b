"""Line 3 of Algorithm 1: features of all images, by replicas of the network."""

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from daal.augment import normalise
from daal.config import Config, InputConfig
from daal.errors import DataError
from daal.network import DaalNetwork
from daal.step import mixed_precision
from pipelines.session import Resources
from pipelines.stream import decode_rows


def extract(
    images: ray.ObjectRef[Any],
    num_images: int,
    config: Config,
    weights: ray.ObjectRef[Any],
    resources: Resources,
) -> NDArray[np.float32]:
    """Shared features (num_images, C) of an image table, in the rows' order.

    `weights` refers to a checkpoint's tensors as NumPy arrays.

    Raises:
        DataError: a feature isn't finite.
    """
    batch_size = config.ray.extract_batch
    replicas = max(1, min(resources.num_replicas, -(-num_images // batch_size)))
    pixels = ray.data.range(
        num_images, override_num_blocks=max(replicas, -(-num_images // (4 * batch_size)))
    ).map_batches(_Decoder(images, config.input), batch_size=batch_size)
    extracted = pixels.map_batches(
        _Replica,
        fn_constructor_args=(config, weights, resources.threads, resources.use_gpu),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=replicas),
        num_cpus=resources.cpus_per_worker,
        num_gpus=1 if resources.use_gpu else 0,
    )
    features = None
    for batch in extracted.iter_batches(batch_size=None, batch_format="numpy"):
        if features is None:
            features = np.empty((num_images, batch["feature"].shape[1]), np.float32)
        features[batch["row"]] = batch["feature"]
    if features is None or not np.isfinite(features).all():
        raise DataError("the network gives features that are not finite; its weights are damaged.")
    return features


class _Decoder:
    def __init__(self, images: ray.ObjectRef[Any], size: InputConfig) -> None:
        self.images, self.size = images, size

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"row": batch["id"], "pixels": decode_rows(self.images, batch["id"], self.size)}


class _Replica:
    """One copy of the network, on its own GPU if there is one."""

    def __init__(self, config: Config, weights: Any, threads: int, use_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        # The checkpoint has all the weights, so the backbone's own are not read again.
        self.network = DaalNetwork(config.network.model_copy(update={"weights": "none"}))
        loaded = ray.get(weights) if isinstance(weights, ray.ObjectRef) else weights
        self.network.load_matching({name: torch.tensor(array) for name, array in loaded.items()})
        self.network.to(self.device, memory_format=torch.channels_last).eval()
        self.flip = config.flip_test
        self.autocast = mixed_precision(self.device, config.mixed_precision)

    @torch.inference_mode()
    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images_BCHW = torch.tensor(batch["pixels"], device=self.device).permute(0, 3, 1, 2)
        images_BCHW = normalise(images_BCHW)
        with self.autocast:
            features_BC = self.network.extract(images_BCHW)
            if self.flip:
                features_BC += self.network.extract(images_BCHW.flip(3))
        if self.flip and self.network.unit_features:
            features_BC = F.normalize(features_BC, dim=1)
        return {"row": batch["row"], "feature": features_BC.cpu().numpy()}


def features_table(images: pa.Table, features: NDArray[np.float32]) -> pa.Table:
    """A features file's rows: what is known of each image, and its feature as a fixed-size list."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    return images.drop_columns(["image"]).append_column("feature", lists)


def features_array(table: pa.Table) -> NDArray[np.float32]:
    """The feature column as (N, C) float32."""
    column = table.column("feature").combine_chunks()
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(column), -1), dtype=np.float32)
