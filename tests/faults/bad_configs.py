"""Command lines, recipes, suites and settings that are wrong."""

import os

from bad_input import VALIDATE, Case, both_sets, case, nothing, write

COMMAND_LINES = [
    "adpat fast",
    "config shwo",
    "adapt",
    "adapt demo --drry",
    "adapt demo --json -v",
    "label x.npy --out",
    "ablate table4 --seeds none",
    "ablate tabel4",
]

WRONG = [
    "cluster.epz=0.4",
    "seed",
    ".".join("a" * 2000) + "=1",
    "seed=true",
    "seed=one",
    "seed=[1",
    "seed.value=1",
    "cluster={1: 2}",
    "flip_test=maybe",
    "network.weights=no",
    "out=''",
    "pretrain.batch_target=8",
    "seed=010",
    "ray.wait_minutes=1:30",
    "target.root=/data/run #1",
    "out=~nobody-of-this-name/run",
    "seed=" + "9" * 5000,
    "network.backbone=resnet51",
    "cluster.p=.nan",
    "adapt.batch_target=0",
    "cluster=3",
    "adapt.optim.decay_at_epochs=[1, x]",
    "pretrain.images_per_id=4",
    "adapt.accumulate=2",
    "cluster.eps_rule=nonsense",
    "ray.use_gpu=maybe",
    "seed={a: 1, a: 2}",
    "seed=\x1b[31m1",
    "network.weights=imagenet-v2",
    "network.attention.relu_before_sigmoid=true",
    "network.backbone=jax:resnet50",
    "network.pooling=cls",
    "loss.triplet_weight=1",
    "loss.triplet_margin=0.3",
    "loss.teacher_weight=0.5",
    "input.width=16",
]

# Settings that don't go together
CONTRADICTIONS = [
    "network.backbone=timm:vit_tiny_patch16_224 network.weights=imagenet",
    "network.backbone=resnet18 network.weights=pretrained",
    "seed=-1 iterations=x",
    "accumulate=3",
    "ray.min_workers=3",
    "ray.num_workers=8 ray.min_workers=3",
    "adapt.images_per_id=4 accumulate=16 ray.num_workers=1",
    "adapt.images_per_id=4 accumulate=8 ray.num_workers=1 loss.triplet_weight=1",
    "network.ibn=a network.weights=imagenet network.frozen_stages=3",
    "network.attention.mode=independent network.specific_branch=false",
    "network.stripes=2 cluster.outliers=singletons",
    "cluster.camera_aware=true cluster.search=approximate",
    "cluster.k1=7 cluster.camera_aware=true",
    "network.attention.mode=none network.attention.pool_channels=true",
    "cluster.p=1e-3 cluster.eps=0.6",
]

RECIPES = {
    "unknown key": b"clutser: {eps: 0.4}\n",
    "key with its section in front": b"cluster.eps: 0.4\n",
    "wrong type": b"cluster: {k1: many}\n",
    "number as a key": b"1: 2\n",
    "list": b"- 1\n- 2\n",
    "open bracket": b"seed: [1\n",
    "the same key twice": b"seed: 1\nseed: 2\n",
    "python/object/apply": b"seed: !!python/object/apply:os.mkdir [made]\n",
    "a billion laughs": b"a: &a [1, 1, 1, 1, 1, 1, 1]\nb: &b [*a, *a, *a, *a, *a, *a, *a]\n",
    "nested 20,000 deep": b"seed: " + b"[" * 20_000,
    "200 kB": b"# words\n" * 25_000,
    "Latin-1": "out: M\u00fcller\n".encode("latin-1"),
}

SUITES = {
    "unknown key": b"title: x\nrows: [{name: y}]\nsedes: 1",
    "unknown setting in a row": b"title: x\nrows: [{name: y, settings: [clutser.k1=3]}]",
    "python/name": b"title: !!python/name:os.system x",
}


def a_file_at_runs() -> None:
    both_sets()
    write("runs", "a file")


FILES = [
    case("Command lines", "synth into a folder of other things", lambda: write("mine/words.txt"),
         "synth mine", 3),
    case("Recipes", "absent file", nothing, "validate mine.yaml", 2),
    case("Recipes", "unknown name", nothing, "adapt nonsense --dry-run", 2),
    case("Recipes", "nearly a name", nothing, "adapt fats --dry-run", 2),
    case("Recipes", "name too long for a disk", nothing, f"config show {'x' * 300}", 2),
    case("Recipes", "pipe", lambda: os.mkfifo("mine.yaml"), "adapt mine.yaml --dry-run", 2),
    case("Recipes", "out= with one slash", nothing, "validate demo out=s3:/bucket/run", 2),
    case("Recipes", "out= inside a file", a_file_at_runs,
         "adapt demo source.root=source target.root=target out=runs/mine --dry-run", 2),
]  # fmt: skip


def settings(overrides: list[str]) -> Case:
    shown = " ".join(overrides).encode("unicode_escape").decode()
    name = shown if len(shown) <= 60 else f"{shown[:57]}... ({len(shown):,} characters)"
    return Case("Settings", name, lambda: ["config", "show", "demo", *overrides], 2)


CASES = [
    *(case("Command lines", line, nothing, line, 2) for line in COMMAND_LINES),
    *FILES,
    *(case("Recipes", name, lambda content=content: write("mine.yaml", content),
           "config show mine.yaml", 2) for name, content in RECIPES.items()),
    *(case("Suites", name, lambda content=content: write("mine.yaml", content),
           "ablate mine.yaml", 2) for name, content in SUITES.items()),
    *(settings([override]) for override in WRONG),
    *(settings(overrides.split()) for overrides in CONTRADICTIONS),
    case("Settings", "more stripes than rows", both_sets, f"{VALIDATE} network.stripes=20", 2),
    case("Settings", "all stages frozen", both_sets, f"{VALIDATE} network.frozen_stages=5", 2),
]  # fmt: skip
