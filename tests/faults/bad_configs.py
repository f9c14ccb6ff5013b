"""Recipes and settings that are wrong."""

import os

from bad_input import Case, market, write

from pipelines.tools.shipped import shipped_names

WRONG = [
    # settings, what must be said
    (["cluster.epz=0.4"], ('"cluster.epz" is not a known key', 'did you mean "cluster.eps"?')),
    (["adapt.epoch=3"], ('did you mean "adapt.epochs"?',)),
    (["seed"], ('"seed" is not KEY=VALUE',)),
    ([".".join("a" * 2000) + "=1"], ("is not KEY=VALUE",)),
    (["seed=one"], ("seed='one' should be a valid integer",)),
    (["seed=true"], ("seed=True should be a number, not true or false",)),
    (["seed.value=1"], ("seed={'value': 1} should be a valid integer",)),
    (["seed=010"], ("010 means 8 there; write a plain number",)),
    (["ray.wait_minutes=1:30"], ("1:30 means 90 there; write a plain number",)),
    (["target.root=/data/run #1"], ("has a #, with which YAML begins a comment",)),
    (["out=~nobody-of-this-name/run"], ("begins with a home folder that isn't known here",)),
    (
        ["network.weights=imagenet-v2"],
        ("network.weights=imagenet-v2 needs network.backbone=resnet50",),
    ),
    (["seed=" + "9" * 5000], ("seed=999", "is not valid YAML (Exceeds the limit")),
    (["adapt.batch_target=0"], ("adapt.batch_target=0 should be greater than 0",)),
    (["cluster.p=.nan"], ("cluster.p=nan should be a finite number",)),
    (["flip_test=maybe"], ("flip_test='maybe' should be a valid boolean",)),
    (["network.weights=no"], ("network.weights=False should be a valid string",)),
    (["out=''"], ("out='' should have at least 1 character",)),
    (
        ["cluster=3"],
        ("cluster=3 should be a section of keys and values", 'from override "cluster=3"'),
    ),
    (["cluster={1: 2}"], ('"cluster.1" should be a name',)),
    (["adapt.optim.decay_at_epochs=[1, x]"], ("adapt.optim.decay_at_epochs.1='x' should be",)),
    (["pretrain.images_per_id=4"], ("pretrain.images_per_id=4 can't be set any more",)),
    (["pretrain.batch_target=8"], ("pretrain.batch_target=8 can't be set any more: it is 0",)),
    (["adapt.accumulate=2"], ("are one setting now; write accumulate",)),
    (["cluster.eps_rule=nonsense"], ("cluster.eps_rule=nonsense is unknown",)),
    (["ray.use_gpu=maybe"], ("ray.use_gpu='maybe' should be a valid boolean", "should be 'auto'")),
    (["seed=-1", "iterations=x"], ("seed=-1 should be", "iterations='x' should be")),
    (["seed=[1"], ('the value of "seed=[1" is not valid YAML', "line 1, column")),
    (["seed={a: 1, a: 2}"], ("the key 'a' is there twice",)),
    (["seed=" + "[" * 5000], ("nested too deeply",)),
    (["seed=!!python/object/apply:os.mkdir [made]"], ("constructor for the tag", "os.mkdir")),
    (["seed=\x1b[31m1"], ("the value of", r"\x1b[31m1", "special characters")),
    (["seed=\udcff"], ("the value of", r"\udcff", "special characters")),
]

CONTRADICTIONS = [
    (["ray.num_workers=3"], ("pretrain.batch_source=64 is not divisible by ray.num_workers=3",)),
    (["accumulate=3"], ("pretrain.batch_source=64 is not divisible by ray.num_workers=2 x",)),
    (["ray.min_workers=3"], ("ray.min_workers=3 is more than ray.num_workers=2",)),
    (["ray.num_workers=8", "ray.min_workers=3"], ("not divisible by ray.min_workers=3; every",)),
    (["adapt.images_per_id=4", "accumulate=16", "ray.num_workers=1"],
     ("adapt.batch_target=32 is not divisible by adapt.images_per_id=4 x accumulate=16",)),
    (["adapt.images_per_id=4", "accumulate=8", "ray.num_workers=1", "loss.triplet_weight=1"],
     ("needs two identities in each part of a batch: adapt.batch_target=32",)),
    (["network.ibn=a", "network.weights=imagenet", "network.frozen_stages=3"],
     ("needs network.weights=FILE of a ResNet-IBN",)),
    (["cluster.camera_aware=true", "cluster.search=approximate"], ("cluster.search=exact",)),
    (["cluster.camera_aware=true", "cluster.search=cuvs"], ("cluster.search=exact",)),
    (["cluster.method=hdbscan", "cluster.source_weight=0.1"], ("cluster.method=dbscan",)),
    (["network.attention.relu_before_sigmoid=true"], ("network.attention.zero_init=false",)),
    (["network.attention.mode=independent", "network.specific_branch=false"],
     ("network.specific_branch=true",)),
    (["loss.triplet_weight=1"], ("needs adapt.images_per_id",)),
    (["network.stripes=2", "cluster.outliers=singletons"], ("cluster.outliers=drop",)),
    (["network.stripes=20"], ("network.stripes=20 needs a feature map of as many rows",)),
    (["loss.teacher_weight=0.5"], ("raise adapt.teacher_momentum above 0",)),
    (["input.width=16"], ("mixed_precision=false",)),
    (["cluster.k1=7", "cluster.camera_aware=true"],
     ("cluster.k1=7 has no effect with cluster.camera_aware=true; leave it out, or set cluster.",)),
    (["network.attention.mode=none", "network.attention.pool_channels=true"],
     ("has no effect with network.attention.mode=none; leave it out, or choose another network.",)),
    (["loss.triplet_margin=0.3"],
     ("has no effect with loss.triplet_weight=0.0; leave it out, or raise loss.triplet",)),
    (["cluster.p=1e-3", "cluster.eps=0.6"], ("cluster.p and cluster.eps are different rules",)),
]  # fmt: skip

RECIPES = [
    # name of the case, content, what must be said
    ("unknown key", b"clutser: {eps: 0.4}\n", ('"clutser" is not a known key', "mine.yaml")),
    ("key with its section in front", b"cluster.eps: 0.4\n", ("in its section, cluster: {eps",)),
    ("wrong type", b"cluster: {k1: many}\n", ("cluster.k1='many' should", "from mine.yaml")),
    ("number as a key", b"1: 2\n", ('"1" should be a name', "mine.yaml")),
    ("list", b"- 1\n- 2\n", ("recipe mine.yaml must hold keys and values", "list")),
    ("open bracket", b"seed: [1\n", ("recipe mine.yaml is not valid YAML", "line 2")),
    ("colon too many", b"seed: 1: 2\n", ("recipe mine.yaml is not valid YAML", "line 1")),
    ("the same key twice", b"seed: 1\nseed: 2\n", ("'seed' is there twice", "line 2")),
    ("python/object/apply", b"seed: !!python/object/apply:os.mkdir [made]\n",
     ("recipe mine.yaml", "constructor for the tag", "os.mkdir' in line 1")),
    ("a billion laughs", b"a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + b"".join(
        f"{chr(n + 1)}: &{chr(n + 1)} [{', '.join(9 * [f'*{chr(n)}'])}]\n".encode()
        for n in range(ord("a"), ord("z"))
    ), ("the reference *a isn't followed in line 2",)),
    ("nested 20,000 deep", b"seed: " + b"[" * 20_000, ("recipe mine.yaml is nested too deeply",)),
    ("200 kB", b"# words\n" * 25_000, ("recipe mine.yaml has 200,000 bytes",)),
    ("Latin-1", "out: M\u00fcller\n".encode("latin-1"), ("isn't UTF-8 text (byte 6)",)),
    ("an image", b"\xff\xd8\xff\xe0" + bytes(200), ("mine.yaml isn't UTF-8 text",)),
]  # fmt: skip


def recipe(name: str, content: bytes, says: tuple[str, ...]) -> Case:
    def make() -> list[str]:
        return ["config", "show", write("mine.yaml", content)]

    return Case("Recipes", name, make, 2, says)


def pipe() -> list[str]:
    os.mkfifo("mine.yaml")
    return ["adapt", "mine.yaml", "--dry-run"]


def out_is_file() -> list[str]:
    write("runs", "a file")
    return ["adapt", "demo", f"source.root={market('source')}", f"target.root={market('target')}",
            "out=runs/mine", "--dry-run"]  # fmt: skip


FILES = [
    Case("Recipes", "absent file", lambda: ["validate", "mine.yaml"], 2,
         ("recipe mine.yaml can't be read: it doesn't exist",)),
    Case("Recipes", "unknown name", lambda: ["adapt", "nonsense", "--dry-run"], 2,
         ('there is no recipe "nonsense"', ", ".join(shipped_names()))),
    Case("Recipes", "name too long for a disk", lambda: ["config", "show", "x" * 300], 2,
         ('there is no recipe "xxx',)),
    Case("Recipes", "pipe", pipe, 2, ("recipe mine.yaml can't be read: it isn't a file",)),
    Case("Recipes", "out= with one slash", lambda: ["validate", "demo", "out=s3:/bucket/run"], 2,
         ("out=s3:/bucket/run has one slash after its scheme; write out=s3://bucket/run",)),
    Case("Recipes", "out= inside a file", out_is_file, 2,
         ("out=runs/mine can't be a run folder: DIR/runs is no folder",)),
]  # fmt: skip


def short(text: str) -> str:
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= 60 else f"{text[:57]}... ({len(text):,} characters)"


def setting(overrides: list[str], says: tuple[str, ...]) -> Case:
    name = short(" ".join(overrides))
    return Case("Settings", name, lambda: ["config", "show", "demo", *overrides], 2, says)


CASES = [
    *(recipe(*row) for row in RECIPES),
    *FILES,
    *(setting(overrides, says) for overrides, says in [*WRONG, *CONTRADICTIONS]),
]
