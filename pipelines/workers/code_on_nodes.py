"""Whether each node of a cluster has the same code as this command.

Ray sends functions by the name of their module, and each node imports what it finds under that
name: perhaps another version, or a `cluster` of another project.
"""

import sys
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from daal.errors import ClusterError

PACKAGES = ("daal", "cluster", "pipelines")
SECONDS = 120.0  # a node that doesn't answer in time isn't checked


def code_found(packages: tuple[str, ...]) -> dict[str, Any]:
    """Where this process finds each package (None: nowhere), and a digest of their source.

    Sent by value, so it uses the standard library only.
    """
    import hashlib
    from importlib.util import find_spec
    from pathlib import Path

    digest = hashlib.sha256()
    places: dict[str, str | None] = {}
    for name in packages:
        spec = find_spec(name)
        places[name] = spec.origin if spec else None
        if spec is None or spec.origin is None or Path(spec.origin).name != "__init__.py":
            continue
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return {"places": places, "digest": digest.hexdigest()}


def check_code_on_nodes(ours: dict[str, Any]) -> None:
    """Raises ClusterError if a node has other code than `ours` (`code_found`)."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(code_found)
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
        asked = {
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(PACKAGES): node["NodeManagerAddress"]
            for node in nodes
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=SECONDS)
    for reference in answered:
        try:
            theirs = ray.get(reference)
        except RayError:
            continue  # the node has left since
        if theirs["digest"] != ours["digest"]:
            raise ClusterError(
                f"the node {asked[reference]} would run other code ({_folders(theirs)}) than this "
                f"command ({_folders(ours)}); install the same daal-reid there, or send this one "
                "along with daal submit --ship-code."
            )


def _folders(found: dict[str, Any]) -> str:
    return ", ".join(sorted({str(place or "nowhere") for place in found["places"].values()}))
