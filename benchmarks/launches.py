"""How many operations of a training step launch kernels, by recipe and phase. Needs no GPU.

    python -m benchmarks.launches [--recipe NAME ...] [--setting KEY=VALUE ...] [--json]

Counted on fake CUDA tensors (`benchmarks.fake_steps`), for one worker and for eight. The host takes
some 5 to 20 microseconds for each; an operation is one kernel, mostly. DDP's few are not counted.
`captured`: what the host launches where the step is a CUDA graph, itself counted once. Minutes.
"""

from typing import Any, get_args

from benchmarks.fake_steps import Stage, by_phase, watched_step
from benchmarks.tables import parse, parser_of, tell
from pipelines.tools.shipped import read_config, shipped_names


def main() -> None:
    options = parser_of(__doc__)
    options.add_argument("--recipe", nargs="+", default=shipped_names())
    options.add_argument("--setting", nargs="+", default=[], metavar="KEY=VALUE")
    given = parse(options)
    rows = [
        row(recipe, stage, workers, given.setting)
        for recipe in given.recipe
        for stage in get_args(Stage)
        for workers in (1, 8)
    ]
    tell(given, "Operations of a step that launch", rows)


def row(recipe: str, stage: Stage, workers: int, settings: list[str]) -> dict[str, Any]:
    """The second step: the first also makes constants."""
    given = ["source.root=.", "target.root=.", f"ray.num_workers={workers}", *settings]

    def count(cuda_graph: str) -> dict[str, int]:
        config = read_config(recipe, [*given, f"ray.cuda_graph={cuda_graph}"])
        return by_phase(watched_step(config, stage, number=1).launches)

    counts: dict[str, Any] = {"step": f"{recipe}, {stage}", "workers": workers, **count("false")}
    return counts | {"captured": count("auto")["all"] if workers == 1 else ""}


if __name__ == "__main__":
    main()
