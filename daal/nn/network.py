"""The network of Fig. 2: backbone, attention module, shared and specific branches.

Shapes: B images, H x W pixels, C channels of the last feature map (the feature's size),
S source identities, K pseudo-label clusters.
"""

from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daal.config import InputConfig, NetworkConfig
from daal.errors import CheckpointError, ConfigError
from daal.nn.attention import (
    DomainAdaptiveAttention,
    IndependentAttention,
    attention_module,
    exchange_surroundings,
)
from daal.nn.backbone import build_backbone
from daal.nn.domain_batch_norm import checkpoint_name, separate_domains
from daal.nn.heads import ClusterMemory, IdentityHead
from daal.nn.pooling import AveragePooling, BatchNormNeck, GeneralizedMeanPooling
from daal.nn.stripes import pool_stripes


@dataclass(frozen=True)
class NetworkOutput:
    """What the losses need. A head that the network doesn't have gives None."""

    shared_BC: Tensor  # the feature used for matching and clustering
    pooled_BC: Tensor  # the same before the neck
    source_logits_BS: Tensor | None
    target_logits_BK: Tensor | None
    domain_logits_B2: Tensor | None
    stripes_BSC: Tensor | None = None  # pooled parts of the body (SSG)
    exchanged: "NetworkOutput | None" = None  # of people before other images' surroundings


class DaalNetwork(nn.Module):
    """Backbone -> attention -> pooling -> neck -> heads. The paper: global average, no neck.

    A batch holds source images first, then target images; `num_source` says where the border
    is. Heads are made only for what a stage trains: pretraining has no target or domain head
    (DDP would wait for their gradients), extraction has none at all. Domains have BatchNorms of
    their own only in a network with heads for both (see `daal.nn.domain_batch_norm`).
    """

    def __init__(
        self,
        config: NetworkConfig,
        num_source_ids: int = 0,
        num_clusters: int = 0,
        domain_head: bool = False,
        input: InputConfig | None = None,
        exchange: bool = False,
    ) -> None:
        """`input`: the images' size, by default the paper's. Only some backbones depend on it.
        `exchange`: in training, forward also gives what the heads say of exchanged features.

        Raises ValueError if it has no domain head or no residual attention.
        """
        super().__init__()
        backbone = build_backbone(config, input or InputConfig())
        self.backbone, channels = backbone.layers, backbone.channels
        self.statistics = backbone.statistics  # images are normalised by these
        self._stages = backbone.stages
        self.attention = attention_module(channels, config.attention)
        # One for both maps: pretraining, which pools no specific map, trains the whole of it.
        self.pool = GeneralizedMeanPooling() if config.pooling == "gem" else AveragePooling()
        self.neck = BatchNormNeck(channels) if config.neck == "bnneck" else nn.Identity()
        self.num_stripes = config.stripes
        self.num_features = channels * (1 + config.stripes)
        self.source_head = (
            IdentityHead(config, channels, num_source_ids) if num_source_ids else None
        )
        self.target_head: IdentityHead | ClusterMemory | None = None
        if num_clusters and config.target_head == "memory":
            self.target_head = ClusterMemory(channels, num_clusters)
        elif num_clusters:
            self.target_head = IdentityHead(config, channels, num_clusters)
        self.domain_head = nn.Linear(channels, 2) if domain_head else None
        if isinstance(self.attention, IndependentAttention) and not domain_head:
            self.attention.specific.requires_grad_(False)  # nothing would train it, and DDP waits
        if exchange and not (domain_head and isinstance(self.attention, DomainAdaptiveAttention)):
            raise ValueError("exchange needs the residual attention and a domain head")
        self._exchange = exchange
        modules, parameters = dict(self.backbone.named_modules()), dict(self.named_parameters())
        self._frozen: list[nn.Module] = []
        for name in chain(*self._stages[: config.frozen_stages]):
            if name in modules:
                self._frozen.append(modules[name].requires_grad_(False))
            else:
                parameters[f"backbone.{name}"].requires_grad_(False)
        both_domains = config.domain_batch_norm and num_clusters and num_source_ids
        self._domain_norms = separate_domains(self) if both_domains else []
        if both_domains and not self._domain_norms:
            raise ConfigError(
                "network.domain_batch_norm=true has no effect: no BatchNorm of "
                f"{config.backbone} or after it is trained; leave it out."
            )

    def train(self, mode: bool = True) -> "DaalNetwork":
        super().train(mode)
        for module in self._frozen:  # frozen stages keep their BatchNorm statistics too
            module.eval()
        return self

    def feature_maps(
        self, images_BCHW: Tensor, num_source: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(shared_BCHW, specific_BCHW, attention_BCHW) of normalised images, source images first.

        Only a network with BatchNorms for each domain makes a difference between them.
        """
        for norm in self._domain_norms:
            norm.num_source = num_source
        maps: tuple[Tensor, Tensor, Tensor] = self.attention(self.backbone(images_BCHW))
        return maps

    def extract(self, images_BCHW: Tensor) -> Tensor:
        """The matching feature of target images, of unit length. float32 (B, C).

        It is the pooled shared map, after the neck if there is one. Stripes' features follow:
        (B, C + S C), of unit length in all.
        """
        shared_BCHW, _, _ = self.feature_maps(images_BCHW)
        shared_BC: Tensor = self.neck(self.pool(shared_BCHW))
        if self.num_stripes:
            stripes_BSC = pool_stripes(self.pool, shared_BCHW, self.num_stripes)
            shared_BC = torch.cat([shared_BC, stripes_BSC.flatten(1)], dim=1)
        return F.normalize(shared_BC, dim=1)

    def forward(self, images_BCHW: Tensor, num_source: int) -> NetworkOutput:
        shared_BCHW, specific_BCHW, attention_BCHW = self.feature_maps(images_BCHW, num_source)
        pooled_BC = self.pool(shared_BCHW)
        specific_BC = self.pool(specific_BCHW) if self.domain_head else None
        out = self._heads(pooled_BC, self.neck(pooled_BC), specific_BC, num_source)
        if self.num_stripes:
            stripes_BSC = pool_stripes(self.pool, shared_BCHW, self.num_stripes)
            out = replace(out, stripes_BSC=stripes_BSC)
        if self._exchange and self.training:
            features_BCHW = shared_BCHW + specific_BCHW
            mixed_BC = self.pool(exchange_surroundings(features_BCHW, attention_BCHW, num_source))
            self.neck.eval()  # its statistics are of images, and these are mixtures
            exchanged = self._heads(mixed_BC, self.neck(mixed_BC), mixed_BC, num_source)
            self.neck.train()
            out = replace(out, exchanged=exchanged)
        return out

    def _heads(
        self, pooled_BC: Tensor, shared_BC: Tensor, specific_BC: Tensor | None, num_source: int
    ) -> NetworkOutput:
        source, target, domain = self.source_head, self.target_head, self.domain_head
        return NetworkOutput(
            shared_BC=shared_BC,
            pooled_BC=pooled_BC,
            source_logits_BS=source(shared_BC[:num_source]) if source else None,
            target_logits_BK=target(shared_BC[num_source:]) if target else None,
            domain_logits_B2=domain(specific_BC) if domain else None,
        )

    def stages_after(self, name: str) -> int | None:
        """How many stages of the backbone follow that of its parameter `name`; None for others."""
        if not name.startswith("backbone."):
            return None
        inner = name.removeprefix("backbone.")
        for number, parts in enumerate(reversed(self._stages)):
            if any(f"{inner}.".startswith(f"{part}.") for part in parts):
                return number
        raise AssertionError(f"{name} is in no stage of the backbone")

    def load_matching(self, tensors: dict[str, Tensor]) -> None:
        """Take over a checkpoint of an earlier stage; heads of another size start again.

        BatchNorms for each domain start as copies of a plain one, and a plain one is the target's.

        Raises:
            CheckpointError: if anything but a head doesn't fit.
        """
        own = self.state_dict()
        heads = ("source_head.", "target_head.", "domain_head.")
        found = {name: tensors.get(checkpoint_name(name, tensors)) for name in own}
        fitting = {
            name: tensor
            for name, tensor in found.items()
            if tensor is not None and own[name].shape == tensor.shape
        }
        missing = [n for n in own if n not in fitting and not n.startswith(heads)]
        if missing:
            raise CheckpointError(
                f"the checkpoint does not fit this network: {missing[0]} and {len(missing) - 1} "
                "more tensors are missing or of another shape; use the recipe it was trained with."
            )
        self.load_state_dict(fitting, strict=False)
