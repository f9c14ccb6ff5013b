"""The method's settings: network, training, losses, pseudo-labels."""

from typing import Any, Literal

from pydantic import Field, model_validator

from daal.config_section import Section
from daal.eps_choice import EpsRuleName, with_eps_rule

Backend = Literal["auto", "sklearn", "components", "cuml"]

# torchvision's names of the weights that network.weights can name. They are fixed here, because
# torchvision's DEFAULT has moved from one to the other before.
IMAGENET_WEIGHTS = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}


class InputConfig(Section):
    """Size of the images as the network sees them, in pixels."""

    height: int = Field(384, ge=16, le=2048, description="Paper: 384x128.")
    width: int = Field(128, ge=16, le=2048, description="Images are resized to both.")


class AugmentConfig(Section):
    """Random changes of training images, drawn anew in every epoch."""

    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    pad: int = Field(10, ge=0, description="Padded crop: zeros added on each side before the crop.")
    erase: float = Field(0.5, ge=0, le=1, description="Probability of random erasing.")


class AttentionConfig(Section):
    """The attention module (Eq. 1-2, Fig. 3)."""

    mode: Literal["residual", "independent", "none"] = Field(
        "residual",
        description="residual: A and 1-A (Eq. 1-2). independent: two modules (Table 4's IA). "
        "none: both branches see the whole feature map (Table 4's DSH+DSP).",
    )
    relu_before_sigmoid: bool = Field(
        False,
        description="The text puts a ReLU after every convolution. Read literally the attention "
        "is at least 0.5 everywhere, and the specific branch can never own a pixel; so the last "
        "one is left out unless asked for.",
    )
    spatial_reduction: int = Field(2, ge=1, description="Pointwise output is c/2 (paper).")
    channel_reduction: int = Field(16, ge=1, description="First 1x1 output is c/16 (paper).")
    norm_after_depthwise: bool = Field(
        False,
        description="BatchNorm and ReLU also between the depthwise and the pointwise half of "
        "the spatial layer; the text calls the two one layer.",
    )
    pool_channels: bool = Field(
        False,
        description="Average over the image before the channel layers, as HA-CNN does; the "
        "text has no pooling and its A is h x w x c.",
    )
    zero_init: bool = Field(
        True,
        description="Start at A = 0.5 everywhere (last BatchNorm weight 0): the first features "
        "are the backbone's own, halved. The text says that new parameters are drawn at random.",
    )


class NetworkConfig(Section):
    """The network of Fig. 2, and what the field has added to it since."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = Field("resnet50", description="Paper.")
    last_stride: Literal[1, 2] = Field(
        2, description="Stride of layer4. Not given; 2 is the 2019 stack, 1 what came later."
    )
    weights: str = Field(
        "imagenet",
        description="imagenet: torchvision's IMAGENET1K_V1, the weights that the field used in "
        "2019; the text only says ResNet-50 pretrained on ImageNet. imagenet-v2: IMAGENET1K_V2 of "
        "2021, a ResNet-50 by a longer training. none: random. Otherwise a local .safetensors or "
        ".pth file with torchvision's names (never unpickled beyond tensors).",
    )
    frozen_stages: int = Field(
        0,
        ge=0,
        le=4,
        description="Freeze conv1 (1), and layer1, 2, 3 (2, 3, 4) with their BatchNorm.",
    )
    attention: AttentionConfig = AttentionConfig()
    ibn: Literal["none", "a"] = Field(
        "none",
        description="a: half the channels of each block's first BatchNorm in layer1-3 are "
        "normalised image by image (IBN-a, Pan et al. 2018). Weights: a ResNet's or ResNet-IBN's.",
    )
    pooling: Literal["gap", "gem"] = Field(
        "gap",
        description="gap: average (paper). gem: generalised mean with a learned exponent, 3 at the "
        "start (Radenovic et al. 2019).",
    )
    neck: Literal["none", "bnneck"] = Field(
        "none",
        description="bnneck: BatchNorm without shift between the shared feature and the identity "
        "heads; matching uses the feature behind it (Luo et al. 2019).",
    )
    domain_batch_norm: bool = Field(
        False,
        description="In adapting, source and target images have BatchNorms of their own; "
        "features are the target's (DSBN, Chang et al. 2019).",
    )
    specific_branch: bool = Field(True, description="Eq. 6's branch; off for Table 4's first rows.")
    stripes: int = Field(
        0,
        ge=0,
        description="Horizontal parts of the body that are pooled and clustered apart, beside the "
        "whole; triplets are of each (SSG, Fu et al. 2019: 2). An image that is an outlier in any "
        "of them is left out.",
    )
    identity_head: Literal["linear", "unit"] = Field(
        "linear",
        description="linear: FC on the pooled feature (paper). unit: FC on the L2-normalised "
        "feature times head_scale, which makes centroid initialisation exact and moves faster.",
    )
    target_head: Literal["classifier", "memory"] = Field(
        "classifier",
        description="classifier: FC that learns (paper). memory: clusters' features as class "
        "weights, which follow the batches' (ClusterNCE of Cluster Contrast, Dai et al. 2022).",
    )
    memory_momentum: float = Field(
        0.1, ge=0, lt=1, description="Share of the old in each update; Cluster Contrast: 0.1."
    )
    centroid_init: bool = Field(
        True,
        description="Start the target head, new in each iteration, from the clusters' centroids "
        "(as MMT and OpenUnReID do); a random one hardly learns at the printed 3e-5.",
    )
    unit_features: bool = Field(
        True,
        description="L2-normalise features for Eq. 4 and for matching. Not given; distances for "
        "clustering are always between unit features.",
    )
    head_scale: float = Field(
        20.0,
        gt=0,
        description="Used by identity_head=unit and target_head=memory: 1 / temperature.",
    )
    batch_norm_images: int = Field(
        16,
        ge=1,
        description="BatchNorm's statistics are over at least so many images: workers with fewer "
        "share them in groups (the field's most reported cause of lost accuracy on more GPUs).",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "NetworkConfig":
        if self.neck == "bnneck" and self.batch_norm_images == 1:
            raise ValueError(
                "network.neck=bnneck needs network.batch_norm_images of at least 2; over one "
                "image every feature would be zero"
            )
        if self.weights == "imagenet-v2" and self.backbone != "resnet50":
            raise ValueError(
                "network.weights=imagenet-v2 needs network.backbone=resnet50; torchvision has one "
                f"set of weights for {self.backbone}: use network.weights=imagenet"
            )
        if self.ibn == "a" and self.weights in IMAGENET_WEIGHTS and self.frozen_stages > 1:
            raise ValueError(
                "network.ibn=a with network.frozen_stages above 1 needs network.weights=FILE of a "
                "ResNet-IBN; frozen layers can't learn to do with torchvision's plain weights"
            )
        return self


class OptimConfig(Section):
    """Optimizer and learning rates of one training."""

    optimizer: Literal["sgd", "adam"] = Field("sgd", description="Paper: SGD, momentum 0.9.")
    lr_backbone: float = Field(1.5e-4, gt=0, description="ResNet layers, as printed.")
    lr_new: float = Field(
        3e-5, gt=0, description="All other layers, as printed (the opposite of the field's custom)."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Of SGD. Paper: 0.9.")
    weight_decay: float = Field(5e-4, ge=0, description="Not given; SSG and ECN use 5e-4.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up from 0.")
    decay_every_epochs: int = Field(60, gt=0, description="Paper: times 0.1 every 60 epochs.")
    decay: float = Field(0.1, gt=0, le=1, description="Factor of each decay. Paper: 0.1.")
    decay_at_epochs: list[int] | None = Field(
        None,
        description="Decay at these epochs instead. The printed text also reads as "
        "[20, 80, 140, 200], which ends at 260.",
    )
    decay_at_iterations: list[int] = Field(
        [],
        description="From these iterations of Algorithm 1 on, decay once more: for many short "
        "iterations, which recipes of 50 epochs correspond to.",
    )
    nesterov: bool = Field(False, description="Not given; ECN uses it, SSG doesn't.")


class FitConfig(Section):
    """One training of the network: pretraining, or one iteration of Algorithm 1."""

    epochs: int = Field(260, gt=0, description="Paper: 260 an iteration.")
    steps_per_epoch: int | None = Field(
        None, gt=0, description="Default: one pass over the (non-outlier) target images."
    )
    batch_source: int = Field(16, ge=0, description="Global, over all workers. Paper: 32 in all.")
    batch_target: int = Field(16, ge=0, description="The same of target images.")
    images_per_id: int | None = Field(
        None,
        gt=1,
        description="P x K target batches with this K; default random, as only "
        "cross entropies are used.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="A batch is trained on in so many parts: less memory, the same batch. A part "
        "holds all images_per_id images of each of its identities; BatchNorm, the triplet loss and "
        "a cluster memory see one part at a time.",
    )
    teacher_momentum: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Above 0, the training's result is a teacher: the weights' running mean "
        "(Tarvainen and Valpola 2017), of which each step keeps so much. MMT: 0.999.",
    )
    optim: OptimConfig = OptimConfig()
    checkpoint_every_epochs: int = Field(
        1, gt=0, description="A stopped training goes on from its last such checkpoint."
    )


class PretrainConfig(FitConfig):
    """Line 1 of Algorithm 1: Eq. 3 on the source alone. The text gives no schedule for it."""

    epochs: int = Field(120, gt=0, description="Not given; 120 is usual.")
    batch_source: int = Field(32, gt=0)
    batch_target: Literal[0] = 0
    images_per_id: None = None
    optim: OptimConfig = Field(
        OptimConfig(decay_at_epochs=[40, 70]),
        description="Not given; steps at 40 and 70 as in MMT.",
    )


class SoftLabelConfig(Section):
    """What target images are trained on: Eq. 4, and Table 4's two alternatives."""

    target_labels: Literal["soft", "hard", "lsr"] = Field(
        "soft", description="Table 4's three rows: Eq. 5, Eq. 3 on pseudo-labels, label smoothing."
    )
    form: Literal["literal", "normalized"] = Field(
        "normalized",
        description="literal: Eq. 4 as printed; the mass of its 1/d^2 part depends on the scale of "
        "the features. normalized: that part is scaled to 1-epsilon, so that a sample's weights "
        "sum to 1; the order of clusters and the minimum weight epsilon are the paper's.",
    )
    epsilon: float = Field(0.9, ge=0, le=1, description="Paper: 0.9.")
    min_sq_distance: float = Field(
        1e-3,
        gt=0,
        description="Eq. 4 has no limit where a sample is its cluster's center "
        "(near-copies); squared distances count as at least this.",
    )


class LossConfig(Section):
    """Weights of the loss terms: Eq. 7, and from beyond it."""

    source_weight: float = Field(
        1.0,
        ge=0,
        description="Of means over each domain's images. Eq. 7 has no weights; its mean "
        "over a batch of equal halves is 0.5, 0.5, 1.",
    )
    target_weight: float = Field(1.0, ge=0, description="Of the target's identity loss (Eq. 5).")
    domain_weight: float = Field(1.0, ge=0, description="Of the domain classifier's (Eq. 6).")
    triplet_weight: float = Field(
        0.0, ge=0, description="Of the batch-hard triplet loss on target images."
    )
    triplet_margin: float | None = Field(
        None,
        gt=0,
        description="Default: softmax-triplet (MMT, Ge et al. 2020). A number: hinge with it.",
    )
    teacher_weight: float = Field(
        0.0,
        ge=0,
        description="Of the cross entropy on the teacher's predictions of target images (MMT).",
    )


class ClusterConfig(Section):
    """Features to pseudo-labels. k1, k2, p and M are not given in the text."""

    k1: int = Field(20, ge=1, description="k-reciprocal neighbours (Zhong et al. 2017: 20).")
    k2: int = Field(6, ge=1, description="Local query expansion (Zhong et al. 2017: 6).")
    dialect: Literal["zhong", "faiss"] = Field(
        "zhong",
        description="zhong: k1 neighbours besides the image itself, weights exp(-d2 / max d2). "
        "faiss: k1 with the image itself, exp(-d2), as SpCL, Cluster Contrast and OpenUnReID.",
    )
    camera_aware: bool = Field(
        False,
        description="CA-Jaccard (Chen et al. 2024): neighbours of the image's own camera and of "
        "the others apart. Uses camids and k1_intra..k2_inter in place of k1, k2, dialect.",
    )
    camera_norm: bool = Field(
        False,
        description="Take each camera's own mean and spread out of the features before they are "
        "clustered (camera-based normalisation, after Zhuang et al. 2020). Uses camids.",
    )
    source_weight: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Of UDAP's source term, by which images unlike any of the source are farther "
        "from each other (Song et al. 2020). UDAP: 0.1; the paper has no such term.",
    )
    k1_intra: int = Field(5, ge=1, description="CA-Jaccard's neighbours of the same camera.")
    k1_inter: int = Field(20, ge=1, description="CA-Jaccard's neighbours of other cameras.")
    k2_intra: int = Field(2, ge=1, description="Its query expansion, the image itself counted.")
    k2_inter: int = Field(4, ge=0, description="Its query expansion over other cameras.")
    products: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Precision of the neighbour search's products on GPUs. Neighbours are the "
        "same with each: candidates are measured again, and doubtful ones searched again.",
    )
    search: Literal["exact", "approximate"] = Field(
        "exact",
        description="approximate: a faiss index (pip install daal-reid[faiss]), used only if it "
        "finds 99 % of the true neighbours of sampled images.",
    )
    eps_rule: EpsRuleName = Field(
        "p",
        description="p: mean of the smallest share p of all distances (paper). q: the same with "
        "p = 2q/(N-1), i.e. q pairs an image at any N. fixed: eps as given. Where the rule isn't "
        "given, it follows from the one of p, q and eps that is; so cluster.eps=0.6 on the command "
        "line takes the place of a recipe's rule.",
    )
    p: float = Field(1.6e-3, gt=0, lt=1, description="Not given; UDAP and SSG use 1.6e-3.")
    q: float = Field(10.35, gt=0, description="Pairs an image; 10.35 is p=1.6e-3 at N=12,936.")
    eps: float = Field(0.5, gt=0, lt=1, description="For eps_rule=fixed.")
    refit_eps: bool = Field(
        False,
        description="False keeps the first iteration's eps, as the code of UDAP and SSG does; True "
        "finds it again in each iteration. Not given. Kept is the eps before steps back from a "
        "giant cluster: these are each iteration's own.",
    )
    min_samples: int = Field(
        4, ge=1, description="M, the sample itself counted. Swept 2..18; 4 is usual."
    )
    method: Literal["dbscan", "hdbscan"] = Field(
        "dbscan",
        description="hdbscan: scikit-learn's HDBSCAN, which needs no eps: eps_rule, its values, "
        "refit_eps, backend and max_backoffs have no effect. A cluster has at least min_samples "
        "images. It holds all distances below 1, for sets up to some 100,000 images.",
    )
    backend: Backend = Field(
        "auto",
        description="Who runs DBSCAN; all give the same labels. auto: cuml on a GPU that has it, "
        "components elsewhere.",
    )
    max_cluster_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="A cluster above this share of all images (and above 500) is "
        "called giant (in sets under 1,000: above half): eps is then found again with p or q "
        "halved (fixed: eps times 0.8).",
    )
    max_backoffs: int = Field(4, ge=0, description="How often that is tried before giving up.")
    min_clusters: int = Field(
        2, ge=1, description="With fewer, the previous labels are kept or the run stops."
    )
    outliers: Literal["drop", "singletons"] = Field(
        "drop",
        description="Not in the text. drop: left out of training, as by UDAP, SSG and MMT. "
        "singletons: each is a cluster of its own, as in SpCL (Ge et al. 2020).",
    )

    @model_validator(mode="before")
    @classmethod
    def _eps_rule_and_its_value(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return with_eps_rule(values, {k: field.default for k, field in cls.model_fields.items()})

    @model_validator(mode="after")
    def _search_fits(self) -> "ClusterConfig":
        if self.method == "hdbscan" and self.source_weight:
            raise ValueError(
                "cluster.source_weight above 0 needs cluster.method=dbscan; set one of the two"
            )
        if self.camera_aware and self.search != "exact":
            raise ValueError(
                "cluster.camera_aware=true needs cluster.search=exact; the index can't search "
                "cameras apart"
            )
        return self
