"""Where images are read, how a run is laid over a cluster, and who shows its figures."""

from typing import Literal

from pydantic import Field, model_validator

from daal.config_section import Section

Layout = Literal["market1501", "dukemtmc", "msmt17", "folder"]
ANY_LAYOUT = "any"  # in place of one: a folder of images whose names say nothing


class DatasetConfig(Section):
    """A data set's folder, and what is read of it."""

    layout: Layout = Field(
        "market1501", description="How the folder is laid out and its files are named."
    )
    root: str = Field(
        "",
        description="The data set's folder. Nothing is ever downloaded; DukeMTMC-reID was "
        "withdrawn by its authors and is only ever read from a path that you give.",
    )
    published_counts: bool = Field(
        True, description="Warn when the counts differ from the published data set's."
    )
    max_train_images: int | None = Field(
        None, gt=0, description="Keep a seeded random subset of the training images."
    )
    max_bad_share: float = Field(
        0.05, ge=0, le=1, description="Stop when more than this share of images is unreadable."
    )


class RayConfig(Section):
    """How the run is laid over a Ray cluster.

    Batches are global: the same images make up a step whatever the number of workers.
    """

    num_workers: int = Field(
        2, ge=1, description="Ray Train workers (DDP ranks); they extract the features, too."
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="Elastic: continue with fewer workers when nodes leave, down to so many, and "
        "with up to num_workers when nodes come, each time from the last checkpoint. There are as "
        "many as have room and divide the batches. Default: always num_workers; without room for "
        "them the run waits.",
    )
    wait_minutes: float = Field(
        10.0,
        ge=0,
        description="How long a run waits for nodes on a cluster that is too small for it; an "
        "autoscaling one starts them, also for the GPUs of use_gpu=auto. 0: takes what is there.",
    )
    resize_seconds: float = Field(
        60.0, gt=0, description="How often an elastic run looks for new nodes."
    )
    use_gpu: bool | Literal["auto"] = Field(
        "auto",
        description="One GPU a worker. auto: if there are any, or an autoscaling cluster starts "
        "nodes that have some; for fewer workers if need be.",
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that each worker reserves.")
    data_cpus: int = Field(2, ge=1, description="CPUs kept free for Ray Data to decode with.")
    images: Literal["auto", "jpeg", "decoded", "device"] = Field(
        "auto",
        description="jpeg: decode at every use. decoded: once, kept in the object store. device: "
        "kept in each worker's device memory as well. auto: the last of these that fits.",
    )
    extract_batch: int | None = Field(
        None, ge=1, description="Images of a batch in extraction. Default: 256 on GPUs, 64 on CPUs."
    )
    cuda_graph: bool | Literal["auto"] = Field(
        "auto",
        description="A training step is captured as a CUDA graph and replayed, with the same bits. "
        "auto: with one worker, on a GPU. true: with several, too, which has not been proven.",
    )
    threads_per_worker: int | None = Field(
        None, ge=1, description="Default: a node's cores divided by its workers."
    )
    max_failures: int = Field(
        8,
        ge=-1,
        description="Losses of workers survived in a run, -1: any; preemptions don't count.",
    )
    stall_minutes: float = Field(
        15.0,
        ge=0,
        description="A worker that finishes no step for so long says where it is, and the workers "
        "start anew from the last checkpoint; 0: never.",
    )

    @property
    def least_workers(self) -> int:
        return self.min_workers or self.num_workers

    @property
    def cpus_needed(self) -> float:
        """CPUs that a run reserves, at least.

        While training and extracting, Ray Data decodes beside the workers; without a CPU of its own
        it would wait for ever, and say nothing.
        """
        return self.least_workers * self.cpus_per_worker + self.data_cpus

    @model_validator(mode="after")
    def _have_an_effect(self) -> "RayConfig":
        if self.cuda_graph is True and self.use_gpu is not True:
            raise ValueError(
                "ray.cuda_graph=true needs ray.use_gpu=true; without a GPU nothing is captured"
            )
        return self

    @model_validator(mode="after")
    def _range_of_workers(self) -> "RayConfig":
        if self.least_workers > self.num_workers:
            raise ValueError(
                f"ray.min_workers={self.min_workers} is more than ray.num_workers="
                f"{self.num_workers}; lower the one or raise the other"
            )
        return self


class TrackingConfig(Section):
    """Where a run's figures go besides metrics.jsonl; may change when a run is continued.

    Addresses only. Logins are in each client's own environment variables, never here.
    """

    tensorboard: bool = Field(
        True, description="Event files in the run folder's tensorboard/, on local disks only."
    )
    mlflow: str = Field(
        "",
        description="Tracking URI of MLflow, e.g. http://HOST:5000 (pip install "
        "daal-reid[mlflow]). Login: MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
        "_PASSWORD.",
    )
    mlflow_experiment: str = Field("daal", min_length=1, description="Made if there is none yet.")
    wandb: str = Field(
        "",
        description="Project of Weights & Biases, or ENTITY/PROJECT (pip install "
        "daal-reid[wandb]). Login: WANDB_API_KEY, or wandb login; WANDB_MODE=offline keeps it in "
        "the run folder.",
    )

    @model_validator(mode="after")
    def _no_logins(self) -> "TrackingConfig":
        if "@" in self.mlflow.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "tracking.mlflow has a login in it, which process and job lists would show; set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return self
