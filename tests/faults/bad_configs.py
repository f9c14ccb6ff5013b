"""Recipes and settings that are wrong."""

import os

from bad_input import Case, both_sets, case, write

from pipelines.tools.shipped import shipped_names

# One setting, and what must be said
WRONG: list[tuple[str, *tuple[str, ...]]] = [
    ("cluster.epz=0.4", '"cluster.epz" is not a known key', 'did you mean "cluster.eps"?'),
    ("seed", '"seed" is not KEY=VALUE'),
    (".".join("a" * 2000) + "=1", "is not KEY=VALUE"),
    ("seed=true", "seed=True should be a number, not true or false"),
    ("seed=010", "010 means 8 there; write a plain number"),
    ("ray.wait_minutes=1:30", "1:30 means 90 there; write a plain number"),
    ("target.root=/data/run #1", "has a #, with which YAML begins a comment"),
    ("out=~nobody-of-this-name/run", "begins with a home folder that isn't known here"),
    ("seed=" + "9" * 5000, "seed=999", "is not valid YAML (Exceeds the limit"),
    ("network.backbone=resnet51", "network.backbone='resnet51' should be 'resnet18'"),
    ("cluster.p=.nan", "cluster.p=nan should be a finite number"),
    ("cluster=3", "cluster=3 should be a section of keys and values", 'from override "cluster=3"'),
    ("adapt.optim.decay_at_epochs=[1, x]", "adapt.optim.decay_at_epochs.1='x' should be"),
    ("pretrain.images_per_id=4", "pretrain.images_per_id=4 can't be set any more"),
    ("adapt.accumulate=2", "are one setting now; write accumulate"),
    ("cluster.eps_rule=nonsense", "cluster.eps_rule=nonsense is unknown"),
    ("ray.use_gpu=maybe", "ray.use_gpu='maybe' should be a valid boolean", "should be 'auto'"),
    ("seed={a: 1, a: 2}", 'the value of "seed={a: 1, a: 2}" is not valid YAML',
     "the key 'a' is there twice"),
    ("seed=\x1b[31m1", "the value of", r"\x1b[31m1", "special characters"),
    ("network.weights=imagenet-v2", "network.weights=imagenet-v2 needs network.backbone=resnet50"),
    ("network.attention.relu_before_sigmoid=true", "network.attention.zero_init=false"),
    ("network.stripes=20", "network.stripes=20 needs a feature map of as many rows"),
    ("loss.triplet_weight=1", "needs adapt.images_per_id"),
    ("loss.triplet_margin=0.3",
     "has no effect with loss.triplet_weight=0.0; leave it out, or raise loss.triplet"),
    ("loss.teacher_weight=0.5", "adapt.teacher_momentum above 0"),
    ("input.width=16", "mixed_precision=false"),
]  # fmt: skip

# Several settings, and what must be said
CONTRADICTIONS: list[tuple[str, *tuple[str, ...]]] = [
    ("seed=-1 iterations=x", "seed=-1 should be", "iterations='x' should be"),
    ("accumulate=3", "pretrain.batch_source=64 is not divisible by ray.num_workers=2 x accumulate"),
    ("ray.min_workers=3", "ray.min_workers=3 is more than ray.num_workers=2"),
    ("ray.num_workers=8 ray.min_workers=3", "not divisible by ray.min_workers=3; every"),
    ("adapt.images_per_id=4 accumulate=16 ray.num_workers=1",
     "adapt.batch_target=32 is not divisible by adapt.images_per_id=4 x accumulate=16"),
    ("adapt.images_per_id=4 accumulate=8 ray.num_workers=1 loss.triplet_weight=1",
     "needs two identities in each part of a batch: adapt.batch_target=32"),
    ("adapt.batch_source=0 adapt.batch_target=0", "are both 0; set one of them above 0"),
    ("network.ibn=a network.weights=imagenet network.frozen_stages=3",
     "needs network.weights=FILE of a ResNet-IBN"),
    ("network.attention.mode=independent network.specific_branch=false",
     "network.specific_branch=true"),
    ("network.stripes=2 cluster.outliers=singletons", "cluster.outliers=drop"),
    ("network.domain_batch_norm=true adapt.batch_target=0", "adapt.batch_target above 0"),
    ("cluster.camera_aware=true cluster.search=approximate", "cluster.search=exact"),
    ("cluster.k1=7 cluster.camera_aware=true",
     "cluster.k1=7 has no effect with cluster.camera_aware=true; leave it out, or set cluster."),
    ("network.attention.mode=none network.attention.pool_channels=true",
     "has no effect with network.attention.mode=none; leave it out, or choose another network."),
    ("cluster.p=1e-3 cluster.eps=0.6", "cluster.p and cluster.eps are different rules"),
]  # fmt: skip

# Name of the case, content of a recipe, and what must be said
RECIPES: list[tuple[str, bytes, *tuple[str, ...]]] = [
    ("unknown key", b"clutser: {eps: 0.4}\n", '"clutser" is not a known key', "mine.yaml"),
    ("key with its section in front", b"cluster.eps: 0.4\n", "in its section, cluster: {eps"),
    ("wrong type", b"cluster: {k1: many}\n", "cluster.k1='many' should", "from mine.yaml"),
    ("number as a key", b"1: 2\n", '"1" should be a name', "mine.yaml"),
    ("list", b"- 1\n- 2\n", "recipe mine.yaml must hold keys and values", "list"),
    ("open bracket", b"seed: [1\n", "recipe mine.yaml is not valid YAML", "line 2"),
    ("the same key twice", b"seed: 1\nseed: 2\n", "'seed' is there twice", "line 2"),
    ("python/object/apply", b"seed: !!python/object/apply:os.mkdir [made]\n",
     "recipe mine.yaml", "constructor for the tag", "os.mkdir' in line 1"),
    ("a billion laughs", b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: [*a, *a, *a, *a, *a, *a, *a]\n",
     "the reference *a isn't followed in line 2"),
    ("nested 20,000 deep", b"seed: " + b"[" * 20_000, "recipe mine.yaml is nested too deeply"),
    ("200 kB", b"# words\n" * 25_000, "recipe mine.yaml has 200,000 bytes"),
    ("Latin-1", "out: M\u00fcller\n".encode("latin-1"), "isn't UTF-8 text (byte 6)"),
]  # fmt: skip


def nothing() -> None:
    pass


def a_file_at_runs() -> None:
    both_sets()
    write("runs", "a file")


FILES = [
    case("Recipes", "absent file", nothing, "validate mine.yaml", 2,
         "recipe mine.yaml can't be read: it doesn't exist"),
    case("Recipes", "unknown name", nothing, "adapt nonsense --dry-run", 2,
         'there is no recipe "nonsense"', ", ".join(shipped_names())),
    case("Recipes", "name too long for a disk", nothing, f"config show {'x' * 300}", 2,
         'there is no recipe "xxx'),
    case("Recipes", "pipe", lambda: os.mkfifo("mine.yaml"), "adapt mine.yaml --dry-run", 2,
         "recipe mine.yaml can't be read: it isn't a file"),
    case("Recipes", "out= with one slash", nothing, "validate demo out=s3:/bucket/run", 2,
         "out=s3:/bucket/run has one slash after its scheme; write out=s3://bucket/run"),
    case("Recipes", "out= inside a file", a_file_at_runs,
         "adapt demo source.root=source target.root=target out=runs/mine --dry-run", 2,
         "out=runs/mine can't be a run folder: DIR/runs is no folder"),
]  # fmt: skip


def recipe(name: str, content: bytes, *says: str) -> Case:
    def make() -> None:
        write("mine.yaml", content)

    return case("Recipes", name, make, "config show mine.yaml", 2, *says)


def settings(overrides: list[str], *says: str) -> Case:
    shown = " ".join(overrides).encode("unicode_escape").decode()
    name = shown if len(shown) <= 60 else f"{shown[:57]}... ({len(shown):,} characters)"
    return Case("Settings", name, lambda: ["config", "show", "demo", *overrides], 2, says)


CASES = [
    *(recipe(*row) for row in RECIPES),
    *FILES,
    *(settings([override], *says) for override, *says in WRONG),
    *(settings(overrides.split(), *says) for overrides, *says in CONTRADICTIONS),
]
