"""A whole run as pydantic models: every choice, its default and the reason for it.

Defaults follow the paper's text. Where the text is silent or contradicts itself, the
field's description says what was chosen and why. Imports no torch, so that a
configuration can be checked anywhere in milliseconds.

Sections input, augment, network, pretrain, adapt, cluster, soft_labels and loss decide on the
result: `daal.method_config`. Sections source, target, ray and tracking say what is read, what it
runs on and who is shown: `daal.service_config`.
"""

from math import gcd
from typing import Literal

from pydantic import Field, ValidationInfo, model_validator

from daal.config_section import Section
from daal.method_config import (
    AttentionConfig,
    AugmentConfig,
    ClusterConfig,
    FitConfig,
    InputConfig,
    LossConfig,
    NetworkConfig,
    OptimConfig,
    PretrainConfig,
    SoftLabelConfig,
)
from daal.service_config import DatasetConfig, RayConfig, TrackingConfig

__all__ = [
    "AttentionConfig", "AugmentConfig", "ClusterConfig", "Config", "DatasetConfig", "FitConfig",
    "InputConfig", "LossConfig", "NetworkConfig", "OptimConfig", "PretrainConfig", "RayConfig",
    "SoftLabelConfig", "TrackingConfig",
]  # fmt: skip


class Config(Section):
    """One run, from two image sets to an adapted model."""

    seed: int = Field(
        0, ge=0, lt=2**63, description="Of new weights, batches, augmentation and random subsets."
    )
    out: str = Field(
        "runs/run",
        min_length=1,
        description="Run folder: a path or any pyarrow.fs URI (s3://, gs://).",
    )
    source: DatasetConfig = DatasetConfig()
    target: DatasetConfig = DatasetConfig()
    input: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    network: NetworkConfig = NetworkConfig()
    iterations: int = Field(5, ge=0, le=1000, description="Paper: below 10, converged at 5.")
    stop_agreement: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Stop when a labelling agrees with the last by more than this adjusted Rand "
        "index (outliers count as singletons): training on it again would change little. 1: never.",
    )
    select: Literal["last", "silhouette"] = Field(
        "last",
        description="Which iteration's model is the result. silhouette: the one whose features "
        "cluster best, judged on the sparse graph without any target identity, and across cameras "
        "where there are several, as clusters that follow cameras are compact too. Papers mostly "
        "report the best by test score, which needs identities that a user doesn't have.",
    )
    evaluate_every: int = Field(
        1,
        ge=0,
        description="Score every so many iterations; 0: none. Direct transfer, the last iteration "
        "and the result are scored in any case. Query and gallery images need features only for "
        "scores.",
    )
    keep_features: bool = Field(
        False,
        description="Keep the features of every iteration. Otherwise the run folder keeps those of "
        "direct transfer, of the last iteration and of the result.",
    )
    warm_start: bool = Field(
        True,
        description="Each iteration goes on from the last one's weights, as UDAP does; False "
        'starts each from pretraining. The text says only "re-train".',
    )
    flip_test: bool = Field(
        False,
        description="Add the feature of the mirrored image, for labels and scores (SSG does). "
        "Not given; off is what papers since 2020 report.",
    )
    pretrain: PretrainConfig = PretrainConfig()
    adapt: FitConfig = FitConfig()
    cluster: ClusterConfig = ClusterConfig()
    soft_labels: SoftLabelConfig = SoftLabelConfig()
    loss: LossConfig = LossConfig()
    mixed_precision: bool = Field(
        True,
        description="bf16 autocast in training and extraction, on GPUs and CPUs that multiply "
        "bf16 natively; fp32 elsewhere.",
    )
    compile: bool = Field(
        False,
        description="torch.compile for training: worth its minute of start-up on GPUs and long "
        "runs; results differ from the eager ones by rounding.",
    )
    deterministic: bool = Field(
        True, description="Only algorithms that give the same bits each time, also on GPUs."
    )
    compress_gradients: bool = Field(
        False,
        description="Workers send each other gradients rounded to bf16: half the bytes, for slow "
        "networks. Results differ by that rounding.",
    )
    supervised_bound: bool = Field(
        False, description="Also train on the target's true identities (Table 4's first row)."
    )
    report: bool = Field(
        True,
        description="Write report.html into the run folder at the end: scores, rank lists, "
        "clusters, attention, curves and times on one page. It holds images of people.",
    )
    ray: RayConfig = RayConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def run_name(self) -> str:
        """Of jobs, metrics and trackers: the last part of `out`, in small letters."""
        return self.out.rstrip("/").rpartition("/")[2].lower()

    @property
    def target_only(self) -> bool:
        """No source at all: the method on the target alone, from the backbone's own weights."""
        return not self.source.root and self.adapt.batch_source == 0

    @property
    def common_batch(self) -> int:
        """The greatest number that divides each part of each batch.

        As many workers as divide it can take equal shares of everything that is trained on.
        """
        fits = (self.pretrain, self.adapt)
        sides = [(fit.accumulate, (fit.batch_source, fit.batch_target)) for fit in fits]
        return gcd(*(size // parts for parts, sizes in sides for size in sizes))

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
        rows = self.input.height // (16 if network.last_stride == 1 else 32)
        if network.stripes > rows:
            raise ValueError(
                f"network.stripes={network.stripes} needs a feature map of as many rows; "
                f"input.height={self.input.height} gives {rows}: use fewer stripes or larger images"
            )
        if self.loss.teacher_weight and not self.adapt.teacher_momentum:
            raise ValueError(
                "loss.teacher_weight above 0 needs adapt.teacher_momentum above 0; there is no "
                "teacher otherwise"
            )
        if network.domain_batch_norm and self.adapt.batch_target == 0:
            raise ValueError(
                "network.domain_batch_norm=true needs adapt.batch_target above 0; the target's "
                "statistics would never be trained"
            )
        return self

    @model_validator(mode="after")
    def _gradients_are_sent(self, info: ValidationInfo) -> "Config":
        is_kept = bool(info.context and info.context["kept"])
        if self.compress_gradients and self.ray.num_workers == 1 and not is_kept:
            raise ValueError(
                "compress_gradients=true needs ray.num_workers above 1; one worker sends no "
                "gradients"
            )
        return self

    @model_validator(mode="after")
    def _maps_are_wide_enough(self) -> "Config":
        if self.mixed_precision and min(self.input.width, self.input.height) < 32:
            raise ValueError(
                "input.width and input.height below 32 need mixed_precision=false: on maps one "
                "pixel wide, torch's bf16 convolutions give wrong gradients on CPUs"
            )
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> "Config":
        for name, fit in (("pretrain", self.pretrain), ("adapt", self.adapt)):
            if fit.batch_source == 0 == fit.batch_target:
                raise ValueError(
                    f"{name}.batch_source and {name}.batch_target are both 0; set one of them "
                    "above 0"
                )
            if fit.optim.nesterov and fit.optim.momentum == 0:
                raise ValueError(f"{name}.optim.nesterov=true needs {name}.optim.momentum above 0")
            workers = f"ray.{'min' if self.ray.min_workers else 'num'}_workers"
            parts = f" x {name}.accumulate={fit.accumulate}" if fit.accumulate > 1 else ""
            for side in ("batch_source", "batch_target"):
                size, least = getattr(fit, side), self.ray.least_workers
                if size % (least * fit.accumulate):
                    raise ValueError(
                        f"{name}.{side}={size} is not divisible by {workers}={least}{parts}; "
                        "every worker takes an equal share: choose a multiple"
                    )
        return self

    @model_validator(mode="after")
    def _parts_hold_whole_identities(self, info: ValidationInfo) -> "Config":
        if info.context and info.context["kept"]:
            return self
        # With an image of an identity alone, or without any of another, the triplet loss is 0.
        fit, images = self.adapt, self.adapt.images_per_id
        if images is None:
            return self
        parts = f" x adapt.accumulate={fit.accumulate}" if fit.accumulate > 1 else ""
        if fit.batch_target % (fit.accumulate * images):
            remedy = (
                "lower adapt.accumulate, or choose a multiple" if parts else "choose a multiple"
            )
            raise ValueError(
                f"adapt.batch_target={fit.batch_target} is not divisible by "
                f"adapt.images_per_id={images}{parts}; each identity of a batch has all its images "
                f"in one part: {remedy}"
            )
        if self.loss.triplet_weight and fit.batch_target < 2 * fit.accumulate * images:
            raise ValueError(
                f"loss.triplet_weight above 0 needs two identities in each part of a batch: "
                f"adapt.batch_target={fit.batch_target} should be at least 2 x "
                f"adapt.images_per_id={images}{parts}: raise it, or lower these"
            )
        return self
