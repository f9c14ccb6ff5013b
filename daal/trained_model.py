"""A trained model as its users need it: uint8 images in, features out.

Shapes: B images, H x W pixels of the network's input, C channels of the feature.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daal import checkpoint
from daal.config import MODEL, Config, marked
from daal.data.augment import channel_statistics
from daal.errors import CheckpointError
from daal.load_config import check_config
from daal.nn.network import DaalNetwork


class TrainedModel(nn.Module):
    """uint8 RGB images (B, 3, H, W), 0-255, to the features that `daal extract` gives: (B, C).

    The backbone's normalisation is inside, and so is the flip test (`flip_test`) where the
    configuration has it: then the feature is that of the image and its mirror image together.
    Features are float32, and of unit length. Images are to have the network's size already,
    as `daal.data.images.decode` gives them (bilinear, by Pillow).

    Raises CheckpointError if `tensors` (by name) aren't those of the configuration's network.
    """

    mean_C11: Tensor  # on the scale of uint8, as the deviation
    std_C11: Tensor

    def __init__(self, config: Config, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        # The tensors are all there is, so the backbone's own weights are not read again.
        self.network = DaalNetwork(
            config.network.model_copy(update={"weights": "none"}), input=config.input
        )
        self.network.load_matching(dict(tensors))
        # Buffers move with the model and are exported, which the cached tensors can't be.
        mean_C11, std_C11 = channel_statistics(torch.device("cpu"), self.network.statistics)
        self.register_buffer("mean_C11", mean_C11.clone(), persistent=False)
        self.register_buffer("std_C11", std_C11.clone(), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        normalised_BCHW = (images_BCHW.float() - self.mean_C11) / self.std_C11
        features_BC = self.network.extract(normalised_BCHW)
        if self.config.flip_test:
            mirrored_BC = self.network.extract(normalised_BCHW.flip(3))
            features_BC = F.normalize(features_BC + mirrored_BC, dim=1)
        return features_BC


def load_trained(folder: Path) -> TrainedModel:
    """The model of a checkpoint folder, on the CPU, with the network it was trained with.

    Raises CheckpointError if the folder holds no whole checkpoint of a run.
    """
    tensors, metadata = checkpoint.load(folder)
    if not isinstance(metadata.get("config"), dict):
        raise CheckpointError(
            f"{folder} is not a checkpoint of a run: it does not say its configuration; give one "
            "that daal adapt or daal pretrain wrote."
        )
    known = metadata["config"]
    values = {name: known[name] for name in marked(MODEL) if name in known}
    try:
        return TrainedModel(check_config(values, kept=True), tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
