"""A whole run as pydantic models: every setting, its default and the reason for it.

Defaults follow the paper's text. Where the text is silent or contradicts itself, the description
says what was chosen and why. A setting has an effect, or it is refused with the reason: `needs=`
says when it has one, and `daal.load_config` looks at it. Imports no torch, so that a configuration
can be checked anywhere in milliseconds.
"""

from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Layout = Literal[
    "market1501", "dukemtmc", "veri", "msmt17", "folder", "table", "webdataset", "joined"
]
ANY_LAYOUT = "any"  # in place of one: a folder of images whose names say nothing
Backend = Literal["auto", "sklearn", "components", "cuml"]
EpsRuleName = Literal["p", "q", "fixed"]

# torchvision's names of the weights that network.weights can name. They are fixed here, because
# torchvision's DEFAULT has moved from one to the other before.
IMAGENET_WEIGHTS = {"imagenet": "IMAGENET1K_V1", "imagenet-v2": "IMAGENET1K_V2"}

# The setting of `cluster` that each rule for eps takes its value from, and what `cluster.eps_rule`
# of release 0.1 meant without that value. 10.35 pairs an image are p=1.6e-3 at N=12,936.
VALUE_OF_RULE: dict[EpsRuleName, str] = {"p": "p", "q": "q", "fixed": "eps"}
VALUE_OF_RULE_0_1 = {"p": 1.6e-3, "q": 10.35, "fixed": 0.5}

PRETRAINED = "pretrained"  # network.weights: those that timm has for its network

# Networks of daal/nn/backbones/torchvision.py, which stand without that name in front.
RESNETS = ("resnet18", "resnet34", "resnet50")

# Marks of fields, for `marked`.
MODEL = "part of the model"  # all others say how, where and on what it was trained
NOT_KEPT = "says nothing about the result"  # so a run's config.yaml leaves it out
MAY_CHANGE = "may change when a run is resumed"
LATER = "after pretraining"  # pretraining and the direct transfer don't depend on it


def setting(default: Any, *marks: str, needs: str = "", **limits: Any) -> Any:
    """A field with its marks and pydantic's limits. The text below it is its description.

    `needs` says when it has an effect: conditions on other keys, by their names beside the field or
    by their dotted names, as in `mode!=none, loss.target_weight>0` or `target_labels=soft|hard`.
    """
    about: dict[str, JsonValue] = {"marks": list(marks)} if marks else {}
    if needs:
        about["needs"] = needs
    return Field(default, json_schema_extra=about or None, **limits)


class Section(BaseModel):
    """Frozen, and refuses keys it doesn't know, numbers that aren't finite, and true for 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes and on as true, which Python would take for 1.
        kind = cls.model_fields[info.field_name or ""].annotation
        kinds = (kind, *get_args(kind))
        is_number = any(k in (int, float) or type(k) is int for k in kinds)
        if isinstance(value, bool) and is_number and bool not in kinds:
            raise PydanticCustomError("number", "Input should be a number, not true or false")
        return value


class DatasetConfig(Section):
    """Where the images of one domain are."""

    layout: Layout = setting("market1501")
    """How the set is laid out and its files are named. `table` is a CSV or Parquet file, `joined` a
    YAML file that lists several sets."""
    root: str = setting("")
    """The data set's folder, or its table, tar or YAML file; here, or in a bucket (s3://, gs://).
    Nothing is ever downloaded unasked. DukeMTMC-reID was withdrawn by its authors, and is only read
    from a path that you give."""


class InputConfig(Section):
    """Size of the images as the network sees them, in pixels."""

    height: int = setting(384, ge=16, le=2048)
    """Images are resized to this height. Paper: 384x128."""
    width: int = setting(128, ge=16, le=2048)
    """Images are resized to this width."""


class AugmentConfig(Section):
    """Random changes of training images, drawn again in every epoch."""

    pad: int = setting(10, ge=0)
    """Zeros added on each side before a random crop. 0: no such crop."""
    erase: float = setting(0.5, ge=0, le=1)
    """Probability of random erasing."""


class AttentionConfig(Section):
    """The attention module (Eq. 1-2, Fig. 3)."""

    mode: Literal["residual", "independent", "none"] = setting("residual")
    """residual: A and 1-A (Eq. 1-2). independent: two modules (Table 4's IA). none: both branches
    see the whole feature map (Table 4's DSH+DSP)."""
    relu_before_sigmoid: bool = setting(False, needs="mode!=none")
    """The text puts a ReLU after every convolution. After the last one it keeps the attention at
    0.5 or above, so that no pixel could be specific. By default that one is left out."""
    norm_after_depthwise: bool = setting(False, needs="mode!=none")
    """BatchNorm and ReLU also between the spatial layer's depthwise and pointwise half. The text
    calls the two one layer."""
    pool_channels: bool = setting(False, needs="mode!=none")
    """Average over the image before the channel layers, as HA-CNN does. The text has no pooling,
    and its A is h x w x c."""
    stride: Literal[1, 2] = setting(2, needs="mode!=none")
    """Of the spatial layer. Paper: 2. On a map of 8 x 4 cells that leaves 4 x 2, too few to tell
    the middle from the sides."""
    zero_init: bool = setting(True, needs="mode!=none")
    """Start with A = 0.5 everywhere (the weight of the last BatchNorm is 0): the first features are
    the backbone's own, halved, and no layer before that weight learns until it has grown. The text
    draws new weights at random."""


class NetworkConfig(Section):
    """The network of Fig. 2, and what the field has added to it since."""

    backbone: str = setting("resnet50")
    """What makes the feature map: torchvision's resnet18, resnet34 or resnet50; osnet:NAME; or
    timm:NAME, one of timm's networks (pip install daal-reid[timm]). Paper: ResNet-50."""
    last_stride: Literal[1, 2] = setting(2)
    """Stride of the layers that halve the map last (layer4 of a ResNet). Not given. 2 was usual in
    2019; 1 came later, and gives a feature map of twice the height and width."""
    weights: str = setting("imagenet")
    """What the backbone starts from. imagenet: torchvision's IMAGENET1K_V1, as the field in 2019;
    the text only says pretrained on ImageNet. imagenet-v2: IMAGENET1K_V2 of 2021, a ResNet-50 after
    a longer training. pretrained: those that timm has for its network, from the Hugging Face Hub.
    none: random weights. Otherwise a local .safetensors or .pth file with torchvision's names, or
    timm's for one of its networks, of which only tensors are read."""
    frozen_stages: int = setting(0, ge=0)
    """How many stages, from the image on, are not trained, nor their BatchNorms. ResNets: conv1,
    layer1, layer2, layer3. Transformers: the patch projection (which steadies their training, Chen
    et al. 2021), then blocks. Others: the stem, then stages."""
    attention: AttentionConfig = AttentionConfig()
    ibn: Literal["none", "a"] = setting("none")
    """a: half the channels of each block's first BatchNorm in layer1-3 are normalised image by
    image (IBN-a, Pan et al. 2018). Weights: a ResNet's or ResNet-IBN's."""
    pooling: Literal["gap", "gem", "cls"] = setting("gap")
    """From the feature map to one feature. gap: average (paper). gem: generalised mean with a
    learned exponent that starts at 3 (Radenovic et al. 2019). cls: a transformer's class token in
    place of its map."""
    neck: Literal["none", "bnneck"] = setting("none")
    """bnneck: a BatchNorm without shift between the shared feature and the identity heads. Images
    are matched by the feature after it (Luo et al. 2019)."""
    domain_batch_norm: bool = setting(False, LATER)
    """In adapting, source and target images have BatchNorms of their own. Features are made with
    the target's (DSBN, Chang et al. 2019)."""
    specific_branch: bool = setting(True, LATER)
    """The domain-specific branch of Eq. 6. Off in Table 4's first rows."""
    stripes: int = setting(0, ge=0)
    """So many horizontal parts are pooled, clustered and trained with triplets, each by itself,
    beside the whole image (SSG, Fu et al. 2019: 2). An outlier in any of them is left out."""
    identity_head: Literal["linear", "unit"] = setting("linear")
    """linear: FC on the pooled feature (paper). unit: FC on the L2-normalised feature times 20: the
    first logits are cosine similarities to the clusters' centroids, and training moves faster."""
    target_head: Literal["classifier", "memory"] = setting("classifier", LATER)
    """classifier: an FC that learns (paper). memory: the class weights are the clusters' features,
    which follow those of the batches (ClusterNCE of Cluster Contrast, Dai et al. 2022)."""

    @property
    def weights_file(self) -> str | None:
        """The file that `weights` names, if it names one."""
        return None if self.weights in (*IMAGENET_WEIGHTS, PRETRAINED, "none") else self.weights

    @field_validator("backbone")
    @classmethod
    def _family_is_there(cls, value: str) -> str:
        files = (Path(__file__).parent / "nn" / "backbones").glob("[a-z]*.py")
        families = sorted(file.stem for file in files if file.stem != "torchvision")
        family, colon, _ = value.partition(":")
        if value not in RESNETS and not (colon and family in families):
            known = ", ".join([*RESNETS, *(f"{each}:NAME" for each in families)])
            raise ValueError(f"network.backbone={value} should be one of {known}")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> "NetworkConfig":
        if self.pooling == "cls" and self.attention.mode != "none":
            raise ValueError(
                "network.pooling=cls needs network.attention.mode=none; the attention module "
                "weighs the places of a map, and a class token has none"
            )
        if self.weights in IMAGENET_WEIGHTS and self.backbone not in RESNETS:
            raise ValueError(
                f"network.weights={self.weights} names weights of torchvision's ResNets; with "
                f"network.backbone={self.backbone} set network.weights={PRETRAINED}, or give a file"
            )
        if self.weights == PRETRAINED and family_and_name(self.backbone)[0] != "timm":
            raise ValueError(
                f"network.weights={PRETRAINED} names weights of timm's networks; with "
                f"network.backbone={self.backbone} set network.weights=imagenet, or give a file"
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

    optimizer: Literal["sgd", "adam", "adamw"] = setting("sgd")
    """Paper: SGD, momentum 0.9. adamw: weight decay 0.05 apart from the gradients, of the weights
    of layers alone (Loshchilov and Hutter 2019), as transformers and ConvNeXts are trained."""
    lr_backbone: float = setting(1.5e-4, gt=0)
    """Learning rate of the backbone's layers, as printed."""
    layer_decay: float = setting(1.0, gt=0, le=1)
    """Below 1, the backbone's last stage has this share of its learning rate, the stage before it
    the share's square, and so on (BEiT, Bao et al. 2022). Stages are those of frozen_stages."""
    lr_new: float = setting(3e-5, gt=0)
    """Learning rate of all other layers, as printed. The field usually gives them the higher."""
    decay_at_epochs: list[int] = setting([60, 120, 180, 240])
    """From each of these epochs on, rates are a tenth of what they were. Paper: every 60 epochs.
    The printed text can also be read as [20, 80, 140, 200]."""


class PretrainOptimConfig(OptimConfig):
    """Optimizer and learning rates of pretraining."""

    decay_at_epochs: list[int] = setting([40, 70])
    """From each of these epochs on, rates are a tenth of what they were. Not given; MMT has 40 and
    70."""
    warmup_steps: int = setting(0, ge=0)
    """In so many first steps, rates grow linearly from 0."""
    decay_at_iterations: ClassVar[tuple[int, ...]] = ()


class AdaptOptimConfig(OptimConfig):
    """Optimizer and learning rates of an iteration of Algorithm 1."""

    decay_at_iterations: list[int] = setting([])
    """From each of these iterations of Algorithm 1 on, rates are a tenth of what they were. For
    recipes with many short iterations."""
    warmup_steps: ClassVar[int] = 0


class PretrainConfig(Section):
    """Line 1 of Algorithm 1: Eq. 3 on the source alone. The text gives no schedule for it."""

    epochs: int = setting(120, gt=0)
    """Epochs of pretraining. Not given; 120 is usual."""
    steps_per_epoch: int | None = setting(None, gt=0)
    """Default: one pass over the source images."""
    batch_source: int = setting(32, gt=0)
    """Images of a batch, over all workers. Paper: 32."""
    optim: PretrainOptimConfig = PretrainOptimConfig()
    batch_target: ClassVar[int] = 0
    images_per_id: ClassVar[int | None] = None
    teacher_momentum: ClassVar[float] = 0.0


class AdaptConfig(Section):
    """One iteration of Algorithm 1: training on the source and on pseudo-labels of the target."""

    epochs: int = setting(260, gt=0)
    """Epochs of an iteration. Paper: 260."""
    steps_per_epoch: int | None = setting(None, gt=0)
    """Default: one pass over the target images that are no outliers."""
    batch_source: int = setting(16, ge=0)
    """Source images of a batch, over all workers. Paper: 32 in all."""
    batch_target: int = setting(16, gt=0)
    """Target images of a batch, over all workers."""
    images_per_id: int | None = setting(None, gt=1)
    """Images of each cluster in a target batch (the K of P x K batches). Default: random images, as
    the paper's losses are cross entropies."""
    teacher_momentum: float = setting(0.0, ge=0, lt=1)
    """Above 0, the result of a training is a teacher: the running mean of the weights (Tarvainen
    and Valpola 2017). Each step keeps this share of it. MMT: 0.999."""
    optim: AdaptOptimConfig = AdaptOptimConfig()


FitConfig = PretrainConfig | AdaptConfig


class ClusterConfig(Section):
    """Features to pseudo-labels. The text doesn't give k1, k2, p and M."""

    k1: int = setting(20, ge=1, needs="camera_aware=false")
    """How many k-reciprocal neighbours (Zhong et al. 2017: 20)."""
    k2: int = setting(6, ge=1, needs="camera_aware=false")
    """Over how many neighbours encodings are averaged: local query expansion (Zhong et al. 2017:
    6)."""
    dialect: Literal["zhong", "faiss"] = setting("zhong", needs="camera_aware=false")
    """zhong: k1 neighbours besides the image itself, weights exp(-d2 / max d2). faiss: k1 with the
    image itself, exp(-d2), as SpCL, Cluster Contrast and OpenUnReID."""
    camera_aware: bool = setting(False)
    """CA-Jaccard (Chen et al. 2024): neighbours by the image's own camera and by other cameras are
    found apart, as many of each as in its paper. Uses camids; k1, k2 and dialect have no effect."""
    camera_norm: bool = setting(False)
    """Take each camera's own mean and spread out of the features before clustering (camera-based
    normalisation, after Zhuang et al. 2020). Uses camids."""
    source_weight: float = setting(0.0, ge=0, lt=0.5, needs="method=dbscan")
    """Weight of UDAP's source term: images that are unlike any of the source are farther from each
    other (Song et al. 2020). UDAP: 0.1. The paper has no such term."""
    search: Literal["exact", "cuvs", "approximate"] = setting("exact")
    """What finds the nearest neighbours. cuvs: cuVS on a GPU (pip install daal-reid[gpu]); they are
    measured again, so that they are the same. approximate: a faiss index (pip install
    daal-reid[faiss]), used only if it finds 99 % of the true neighbours of sampled images."""
    p: float | None = setting(1.6e-3, gt=0, lt=1, needs="method=dbscan")
    """eps is the mean of the smallest share p of all distances (paper). Not given; UDAP and SSG use
    1.6e-3. Only one of p, q and eps is given; it takes the place of a recipe's."""
    q: float | None = setting(None, gt=0, needs="method=dbscan")
    """eps is found as with p, from q pairs an image at any number N of images: p = 2q/(N-1). 10.35
    is p=1.6e-3 at N=12,936."""
    eps: float | None = setting(None, gt=0, lt=1, needs="method=dbscan")
    """eps itself, for example 0.5, as the field mostly has it."""
    refit_eps: bool = setting(False, needs="eps=null, method=dbscan")
    """true: eps is found again in each iteration. false: the first iteration's eps is kept (before
    any step back from a giant cluster), as by the code of UDAP and SSG. Not given."""
    min_samples: int = setting(4, ge=1)
    """M: so many images within eps, the image itself counted, make a core of a cluster. Swept
    2..18; 4 is usual."""
    method: Literal["dbscan", "hdbscan"] = setting("dbscan")
    """What clusters. hdbscan: scikit-learn's HDBSCAN, which needs no eps. A cluster has at least
    min_samples images. It holds all distances below 1, for sets up to some 100,000 images."""
    backend: Backend = setting("auto", needs="method=dbscan")
    """What runs DBSCAN; all give the same labels. auto: cuml on a GPU that has it, components
    elsewhere."""
    max_cluster_share: float = setting(0.2, gt=0, le=1)
    """A cluster above this share of all images is giant, if it has more than 500 images, or more
    than half of a set under 1,000. Then eps is found again with p or q halved, or is 0.8 of the
    given one, up to four times."""
    min_clusters: int = setting(2, ge=1)
    """With fewer clusters, the labels of the iteration before are kept. In the first iteration the
    run stops."""
    outliers: Literal["drop", "singletons"] = setting("drop")
    """Images of no cluster; not in the text. drop: they are left out of training, as in UDAP, SSG
    and MMT. singletons: each is a cluster of its own, as in SpCL (Ge et al. 2020)."""

    @property
    def eps_rule(self) -> EpsRuleName:
        """How eps is found: by the one of p, q and eps that is given."""
        return "fixed" if self.eps is not None else "q" if self.q is not None else "p"

    @model_validator(mode="before")
    @classmethod
    def _one_of_p_q_and_eps(cls, values: Any) -> Any:
        return with_one_eps(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _search_fits(self) -> "ClusterConfig":
        if self.camera_aware and self.search != "exact":
            raise ValueError(
                "cluster.camera_aware=true needs cluster.search=exact; the index can't search "
                "cameras apart"
            )
        return self


def with_one_eps(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of `cluster` with one of p, q and eps, the two others being None.

    Release 0.1 had eps_rule=p|q|fixed beside all three.

    Raises:
        ValueError: values of two rules are given.
    """
    names = list(VALUE_OF_RULE.values())
    given = [name for name in names if values.get(name) is not None]
    rest = {key: value for key, value in values.items() if key not in ("eps_rule", *names)}
    if (rule := values.get("eps_rule")) is not None:
        if rule not in VALUE_OF_RULE:
            raise ValueError(
                f"cluster.eps_rule={rule} is unknown; give one of cluster.p, cluster.q and "
                "cluster.eps, and leave it out"
            )
        name = VALUE_OF_RULE[rule]
        if given not in ([], [name], names):
            other = next(other for other in given if other != name)
            raise ValueError(
                f"cluster.{other}={values[other]} has no effect with cluster.eps_rule={rule}; give "
                "only one of cluster.p, cluster.q and cluster.eps, and leave out cluster.eps_rule"
            )
        value = values[name] if name in given else VALUE_OF_RULE_0_1[rule]
        return rest | dict.fromkeys(names) | {name: value}
    if len(given) > 1:
        raise ValueError(
            f"{' and '.join(f'cluster.{name}' for name in given)} are different rules for eps; "
            "give only one of them"
        )
    return rest | dict.fromkeys(names) | {name: values[name] for name in given} if given else rest


class SoftLabelConfig(Section):
    """What target images are trained on: Eq. 4, and Table 4's two alternatives."""

    target_labels: Literal["soft", "soft-literal", "hard", "lsr"] = setting(
        "soft", needs="loss.target_weight>0"
    )
    """Table 4's three rows: Eq. 5 with the weights of Eq. 4 (soft), Eq. 3 on pseudo-labels (hard),
    label smoothing (lsr). soft-literal: Eq. 4 as printed, where the sum of its 1/d^2 part depends
    on the features' scale. soft: that part is scaled to 1-epsilon, so that weights sum to 1."""
    epsilon: float = setting(0.9, ge=0, le=1, needs="target_labels=soft|soft-literal")
    """The least weight of an image's own cluster in Eq. 4. Paper: 0.9."""


class LossConfig(Section):
    """Weights of the loss terms: Eq. 7, and from beyond it."""

    source_weight: float = setting(1.0, ge=0)
    """Weight of the source's identity loss (Eq. 3). Each loss is a mean over its own domain. Eq. 7
    has no weights, but means over a batch of equal halves: that is 0.5, 0.5 and 1."""
    target_weight: float = setting(1.0, LATER, ge=0)
    """Weight of the target's identity loss (Eq. 5)."""
    domain_weight: float = setting(1.0, LATER, ge=0, needs="network.specific_branch=true")
    """Weight of the domain classifier's loss (Eq. 6)."""
    exchange_weight: float = setting(
        0.0,
        LATER,
        ge=0,
        needs="network.attention.mode=residual, network.specific_branch=true, domain_weight>0",
    )
    """Weight of Eq. 7 on mixtures of two feature maps: one image where A is high, another where it
    is low. The identity is to be the first's and the domain the second's, so A has to find people.
    Not in the paper, whose losses are content with any A."""
    triplet_weight: float = setting(0.0, LATER, ge=0)
    """Weight of the batch-hard triplet loss on target images."""
    triplet_margin: float | None = setting(None, LATER, gt=0, needs="triplet_weight>0")
    """A number: triplet loss with this margin. Default: softmax-triplet (MMT, Ge et al. 2020)."""
    teacher_weight: float = setting(0.0, LATER, ge=0, needs="adapt.teacher_momentum>0")
    """Weight of the cross entropy on the teacher's predictions of target images (MMT)."""


class RayConfig(Section):
    """How the run is laid over a Ray cluster.

    Batches are global: the same images make up a step whatever the number of workers.
    """

    num_workers: int = setting(2, ge=1)
    """Workers that train together (DDP). They extract features, too."""
    min_workers: int | None = setting(None, ge=1)
    """Elastic: the run continues with fewer workers when nodes leave, down to so many, and with up
    to num_workers when nodes come, each time from the last checkpoint. Their number divides the
    batches. Default: always num_workers; without room for them the run waits."""
    wait_minutes: float = setting(10.0, ge=0)
    """How long a run waits for nodes on a cluster that is too small for it. An autoscaling cluster
    starts them, also for the GPUs of use_gpu=auto. 0: it takes what is there."""
    use_gpu: bool | Literal["auto"] = setting("auto")
    """One GPU for each worker. auto: if there are any, or an autoscaling cluster starts some; with
    fewer workers if need be."""
    cpus_per_worker: float = setting(1, gt=0)
    """CPUs that each worker reserves."""
    data_cpus: int = setting(2, ge=1)
    """CPUs kept free for Ray Data to decode with."""
    images: Literal["auto", "jpeg", "decoded", "device"] = setting("auto")
    """jpeg: images are decoded at every use. decoded: once, and kept in the object store. device:
    kept in each worker's device memory as well. auto: the last of these that fits."""
    cuda_graph: bool | Literal["auto"] = setting("auto", needs="use_gpu!=false")
    """A training step is captured as a CUDA graph and replayed, with the same bits. auto: with one
    worker, on a GPU. true: also with several, which has not been proven."""
    max_failures: int = setting(8, ge=-1)
    """How many losses of workers a run survives. Announced ones (preemption) don't count. -1: any
    number."""
    stall_minutes: float = setting(15.0, ge=0)
    """When a worker finishes no step for so long, it says where it is, and all restart from the
    last checkpoint. 0: never."""

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.num_workers

    @property
    def cpus_needed(self) -> float:
        """CPUs that a run reserves, at least. Ray Data, which decodes beside the workers, would
        wait for ever without a CPU of its own."""
        return self.least_workers * self.cpus_per_worker + self.data_cpus

    @model_validator(mode="after")
    def _workers_fit(self) -> "RayConfig":
        if self.cuda_graph is True and self.use_gpu == "auto":
            raise ValueError(
                "ray.cuda_graph=true needs ray.use_gpu=true; without a GPU nothing is captured"
            )
        if self.least_workers > self.num_workers:
            raise ValueError(
                f"ray.min_workers={self.min_workers} is more than ray.num_workers="
                f"{self.num_workers}; lower the one or raise the other"
            )
        return self


class TrackingConfig(Section):
    """Where a run's figures go besides metrics.jsonl and the run folder's tensorboard/.

    May change when a run is resumed. Addresses only: logins are in each client's own environment
    variables, never here.
    """

    mlflow: str = setting("")
    """Tracking URI of MLflow, e.g. http://HOST:5000 (pip install daal-reid[mlflow]). Experiment:
    MLFLOW_EXPERIMENT_NAME, or daal. Login: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    _PASSWORD."""
    wandb: str = setting("")
    """Project of Weights & Biases, or ENTITY/PROJECT (pip install daal-reid[wandb]). Login:
    WANDB_API_KEY, or wandb login; WANDB_MODE=offline keeps it in the run folder."""

    @model_validator(mode="after")
    def _no_logins(self) -> "TrackingConfig":
        if "@" in self.mlflow.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "tracking.mlflow has a login in it, which process and job lists would show; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return self


class Config(Section):
    """One run, from two image sets to an adapted model."""

    seed: int = setting(0, ge=0, lt=2**63)
    """Decides on new weights, batches, augmentation and random subsets."""
    out: str = setting("runs/run", NOT_KEPT, min_length=1)
    """Run folder: a path or any pyarrow.fs URI (s3://, gs://)."""
    store: str = setting("", MAY_CHANGE)
    """Folder of the images as runs read them, once for all runs: a path or a URI (s3://, gs://).
    Empty: `daal-images` beside the run folder. It shows people."""
    source: DatasetConfig = DatasetConfig()
    target: DatasetConfig = DatasetConfig()
    max_train_images: int | None = setting(None, gt=0)
    """Keep so many training images of each set, chosen at random."""
    max_bad_share: float = setting(0.05, ge=0, le=1)
    """Stop when more than this share of a set's images is unreadable."""
    input: InputConfig = setting(InputConfig(), MODEL)
    augment: AugmentConfig = AugmentConfig()
    network: NetworkConfig = setting(NetworkConfig(), MODEL)
    iterations: int = setting(5, LATER, ge=0, le=1000)
    """Iterations of Algorithm 1. Paper: below 10, converged at 5."""
    stop_agreement: float = setting(1.0, LATER, gt=0, le=1)
    """Stop when a labelling agrees with the one before by more than this adjusted Rand index (each
    outlier counts as a cluster): training on it again would change little. 1: never."""
    select: Literal["last", "silhouette"] = setting("last", LATER)
    """Which iteration's model is the result. silhouette: the one whose features cluster best, which
    needs no identities (papers mostly report the best by test score). Across cameras, if there are
    several: clusters that follow cameras are compact, too."""
    evaluate_every: int = setting(1, LATER, ge=0)
    """Score every so many iterations; 0: none. Direct transfer, the last iteration and the result
    are always scored. Only scores need features of query and gallery images."""
    keep_features: bool = setting(False, NOT_KEPT)
    """Keep the features of every iteration, not only those of direct transfer, of the last
    iteration and of the result."""
    warm_start: bool = setting(True, LATER)
    """true: each iteration continues from the weights of the one before, as in UDAP. false: each
    starts from pretraining. The text only says "re-train"."""
    flip_test: bool = setting(False, MODEL)
    """The feature is that of the image and its mirror image together, for labels and scores (SSG).
    Not given; papers since 2020 report scores without."""
    pretrain: PretrainConfig = PretrainConfig()
    adapt: AdaptConfig = setting(AdaptConfig(), LATER)
    accumulate: int = setting(1, ge=1)
    """Each batch is trained on in so many parts, which needs less memory. Each identity is in one
    part. BatchNorm, the triplet loss and a cluster memory see one part at a time."""
    checkpoint_every_epochs: int = setting(1, MAY_CHANGE, gt=0)
    """A stopped training resumes from its last such checkpoint."""
    cluster: ClusterConfig = setting(ClusterConfig(), LATER)
    soft_labels: SoftLabelConfig = setting(SoftLabelConfig(), LATER)
    loss: LossConfig = LossConfig()
    mixed_precision: bool = setting(True, MODEL)
    """bf16 autocast in training and extraction, on GPUs and CPUs that multiply bf16 natively. All
    is fp32 elsewhere."""
    compile: bool = setting(False)
    """torch.compile for training: worth its minute on GPUs and in long runs. Changes rounding."""
    deterministic: bool = setting(True)
    """Use only algorithms that give the same bits each time, also on GPUs."""
    compress_gradients: bool = setting(False, needs="ray.num_workers!=1")
    """Workers send each other gradients rounded to bf16: half the bytes, for slow networks."""
    supervised_bound: bool = setting(False, LATER)
    """Also train on the target's true identities (Table 4's first row)."""
    report: bool = setting(True, NOT_KEPT)
    """Write report.html into the run folder at the end: scores, rank lists, clusters, attention and
    curves on one page. It holds images of people."""
    # Another number or kind of workers changes rounding and the groups of BatchNorm. The journal
    # has them, and the run says so (`pipelines.adapt`).
    ray: RayConfig = setting(RayConfig(), MAY_CHANGE)
    tracking: TrackingConfig = setting(TrackingConfig(), NOT_KEPT)

    @property
    def run_name(self) -> str:
        """Name of jobs and metrics, and in trackers: the last part of `out`, in small letters."""
        return self.out.rstrip("/").rpartition("/")[2].lower()

    @property
    def target_only(self) -> bool:
        """No source at all: the method on the target alone, from the backbone's own weights."""
        return not self.source.root and self.adapt.batch_source == 0

    @property
    def common_batch(self) -> int:
        """The greatest number that divides each part of each batch. Any number of workers that
        divides it can take equal shares."""
        sizes = (self.pretrain.batch_source, self.adapt.batch_source, self.adapt.batch_target)
        return gcd(*(size // self.accumulate for size in sizes))

    def domains(self) -> list[tuple[Literal["source", "target"], DatasetConfig]]:
        """The data sets that a run reads."""
        target: list[tuple[Literal["source", "target"], DatasetConfig]] = [("target", self.target)]
        return target if self.target_only else [("source", self.source), *target]

    @model_validator(mode="after")
    def _branches_fit(self) -> "Config":
        network = self.network
        if network.attention.relu_before_sigmoid and network.attention.zero_init:
            raise ValueError(
                "network.attention.relu_before_sigmoid=true needs "
                "network.attention.zero_init=false; together they stop every gradient of the "
                "attention module"
            )
        if network.attention.mode == "independent" and not network.specific_branch:
            raise ValueError(
                "network.attention.mode=independent needs network.specific_branch=true; "
                "without that branch its second attention module would never be trained"
            )
        if self.loss.triplet_weight and not self.adapt.images_per_id:
            raise ValueError(
                "loss.triplet_weight above 0 needs adapt.images_per_id; in random batches hardly "
                "an image meets another of its cluster"
            )
        if network.stripes and self.cluster.outliers == "singletons":
            raise ValueError(
                "network.stripes needs cluster.outliers=drop; an image has no singleton cluster "
                "that is the same in each part"
            )
        if self.mixed_precision and min(self.input.width, self.input.height) < 32:
            raise ValueError(
                "input.width and input.height below 32 need mixed_precision=false: on maps one "
                "pixel wide, torch's bf16 convolutions give wrong gradients on CPUs"
            )
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> "Config":
        workers = f"ray.{'min' if self.ray.min_workers else 'num'}_workers"
        least, parts = self.ray.least_workers, self._parts
        for key, size in (
            ("pretrain.batch_source", self.pretrain.batch_source),
            ("adapt.batch_source", self.adapt.batch_source),
            ("adapt.batch_target", self.adapt.batch_target),
        ):
            if size % (least * self.accumulate):
                raise ValueError(
                    f"{key}={size} is not divisible by {workers}={least}{parts}; every worker "
                    "takes an equal share: choose a multiple"
                )
        return self

    @model_validator(mode="after")
    def _parts_hold_whole_identities(self, info: ValidationInfo) -> "Config":
        images = self.adapt.images_per_id
        if images is None or (info.context and info.context["kept"]):
            return self
        # With an image of an identity alone, or without any of another, the triplet loss is 0.
        size, parts = self.adapt.batch_target, self._parts
        if size % (self.accumulate * images):
            remedy = "lower accumulate, or choose a multiple" if parts else "choose a multiple"
            raise ValueError(
                f"adapt.batch_target={size} is not divisible by adapt.images_per_id={images}"
                f"{parts}; each identity of a batch has all its images in one part: {remedy}"
            )
        if self.loss.triplet_weight and size < 2 * self.accumulate * images:
            raise ValueError(
                f"loss.triplet_weight above 0 needs two identities in each part of a batch: "
                f"adapt.batch_target={size} should be at least 2 x adapt.images_per_id={images}"
                f"{parts}: raise it, or lower these"
            )
        return self

    @property
    def _parts(self) -> str:
        return f" x accumulate={self.accumulate}" if self.accumulate > 1 else ""


def family_and_name(backbone: str) -> tuple[str, str]:
    """The file of daal/nn/backbones that makes a backbone, and what it is called there."""
    family, colon, name = backbone.partition(":")
    return (family, name) if colon else ("torchvision", backbone)


@cache
def fields(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key that a recipe may set."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = _section(field)
        found |= fields(section, f"{prefix}{name}.") if section else {prefix + name: field}
    return found


def conditions_of(field: FieldInfo) -> str:
    """When a field has an effect, as `setting` was told; "" for always."""
    return str(_extra(field).get("needs", ""))


def marked(mark: str, model: type[BaseModel] = Config) -> dict[str, Any]:
    """The fields that have a mark, as `include` or `exclude` of pydantic's `model_dump`."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if mark in _extra(field).get("marks", []):
            found[name] = True
        elif section := _section(field):
            found |= {name: inner} if (inner := marked(mark, section)) else {}
    return found


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
