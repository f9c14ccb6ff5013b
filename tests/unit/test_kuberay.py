"""Kubernetes manifests: their fields are those of KubeRay's and Kubernetes' published APIs."""

import json
import re
from pathlib import Path
from typing import Literal

import pytest
import yaml
from kubernetes import client
from pydantic import ConfigDict, ValidationError, create_model

DEPLOY = Path(__file__).parents[2] / "pipelines/deploy"
MANIFESTS = [DEPLOY / "rayjob.yaml", DEPLOY / "raycluster.yaml"]
FIELDS = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text(encoding="utf-8"))


def classes():
    """KubeRay's types as classes like those of Kubernetes' client: strict, nothing unknown."""
    text = json.dumps(FIELDS["types"])
    types = {name: getattr(client, name) for name in re.findall(r"\bV1\w+", text)}
    ours = {}
    for name, fields in FIELDS["types"].items():
        annotations = {
            field.rstrip("!"): (kind, ...) if field.endswith("!") else (f"{kind} | None", None)
            for field, kind in fields.items()
        }
        strict = ConfigDict(extra="forbid", strict=True)
        ours[name] = create_model(name, __config__=strict, **annotations)
    for each in ours.values():
        each.model_rebuild(_types_namespace={"Literal": Literal, **types, **ours})
    return ours


CLASSES = classes()


def path_of(keys):
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def leaves(value, *keys):
    if not isinstance(value, dict | list) or not value:
        yield path_of(keys), value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(inner, *keys, key)


def problems(text):
    """What the API server would refuse or leave out of a manifest, each with its path."""
    manifest = yaml.safe_load(text)
    try:
        accepted = CLASSES[manifest["kind"]].model_validate_json(json.dumps(manifest))
    except ValidationError as error:
        said = {"extra_forbidden": "unknown field", "missing": "missing"}
        return [f"{path_of(e['loc'])}: {said.get(e['type'], e['msg'])}" for e in error.errors()]
    # The client's classes take Python's names, too (mount_path); Kubernetes does not.
    known = {path for path, _ in leaves(accepted.model_dump(by_alias=True, exclude_unset=True))}
    return [f"{path}: unknown field" for path, _ in leaves(manifest) if path not in known]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_is_as_published(path):
    assert problems(path.read_text(encoding="utf-8")) == []


HEAD = "spec.rayClusterSpec.headGroupSpec"
POD = f"{HEAD}.template.spec"
WORKERS = "spec.rayClusterSpec.workerGroupSpecs[0]"


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("backoffLimit:", "backofLimit:", "spec.backofLimit: unknown field"),
        ("      template:", "      templat:", f"{HEAD}.template: missing"),
        ("mountPath: /d", "mount_path: /d", f"{POD}.containers[0].volumeMounts[0].mount_path: "),
        ("minReplicas: 4", "minReplicas: four", f"{WORKERS}.minReplicas: Input should be a valid"),
        ("K8sJobMode", "K8SJobMode", "spec.submissionMode: Input should be 'K8sJobMode'"),
    ],
)
def test_a_slip_is_found(right, wrong, problem):
    text = MANIFESTS[0].read_text(encoding="utf-8")
    assert right in text
    found = problems(text.replace(right, wrong))
    assert any(each.startswith(problem) for each in found), found
