"""What the figures of benchmarks/gpu_first.py decide, a sentence each."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]
Section = Mapping[str, Any]
Found = Mapping[str, Section]

OF_BARE, IMAGES_PER_S = 0.85, 3000.0  # of the step, at 384x128 and batch 256
MSMT17, LABEL_SECONDS = "pseudo-labels 32621 x 2048", 1.0
MUCH = 0.1  # of a step


def verdicts(found: Found) -> list[str]:
    """Sentences about the sections that there are."""
    said = list(_about(found))
    for section, judge in JUDGES.items():
        rows = [row for row in found.get(section, {}).get("rows", []) if "left_out" not in row]
        if rows:
            try:
                said += judge(rows)
            except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
                said.append(f"Section {section} could not be judged: {error!r}.")
    return said


def _about(found: Found) -> Iterator[str]:
    for name, section in found.items():
        if "left_out" in section:
            yield f"Section {name} was left out: {section['left_out']}."
        if "failed" in section:
            yield f"Section {name} BROKE, and is to be mended first: {section['failed']}."
    untold = [name for name, each in found.items() if each["device"] == "cpu" or each["quick"]]
    if untold:
        yield (
            f"On a CPU or with tiny sizes: {', '.join(untold)}. Their figures say that the code "
            "runs, and nothing of a GPU."
        )


def _right(rows: list[Row]) -> Iterator[str]:
    wrong = list(_wrong(rows))
    yield from wrong
    names = [row["name"].partition(":")[0] for row in rows if "ok" in row]
    if names and not wrong:
        yield f"Right: {len(names)} of {len(names)} ({names[0]}) hold."


def _wrong(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row.get("ok") is False:
            why = next((str(row[key]) for key in ("error", "said", "lacks") if row.get(key)), "")
            name = row["name"].strip()
            yield f"WRONG: {name}{f' ({why})' if why else ''}. Mend it before any speed."


def _host(rows: list[Row]) -> Iterator[str]:
    bound: dict[str, list[str]] = {"host": [], "device": []}
    for row in rows:
        # A graph's time is the device's alone. Without one the device is done long after the host
        # has issued all, or waits for it.
        device_ms = row.get("graph_steady_ms", row["alone_ms"])
        name = row["name"].removeprefix("host ")
        side = "host" if row["host_ms"] > (1 - MUCH) * device_ms else "device"
        bound[side].append(f"{name} ({row['host_ms']:.1f} ms against {device_ms:.1f} ms)")
    for side, shapes in bound.items():
        if shapes:
            yield f"Bound by the {side}: {', '.join(shapes)}."
    yield from _graph(rows)
    first = rows[0]
    share = first["batch_steady_ms"] / first["steady_ms"]
    yield (
        f"Augmentation and Eq. 4 take {share:.0%} of {first['name'].removeprefix('host ')}: "
        + ("look there first." if share > MUCH else "nothing is left to gain there.")
    )


def _graph(rows: list[Row]) -> Iterator[str]:
    ratios = [row["ratio"] for row in rows if row.get("ratio")]
    reasons = {row["graph"] for row in rows if "graph" in row}
    if ratios:
        advice = "keep ray.cuda_graph=auto" if min(ratios) < 1 - MUCH else "a graph gains little"
        yield (
            f"As one CUDA graph a step takes {min(ratios):.2f} to {max(ratios):.2f} of its time: "
            f"{advice}."
        )
    for reason in sorted(reasons):
        yield f"No CUDA graph of a step: {reason}."


def _goal(rows: list[Row]) -> Iterator[str]:
    best = max(rows, key=lambda row: float(row["of_bare"]))
    yield (
        f"The best step ({best['name'].removeprefix('goal ')}) reaches {best['of_bare']:.2f} of "
        f"the bare compiled one ({_held(best['of_bare'] >= OF_BARE, OF_BARE)}) and "
        f"{best['images_per_s']:,.0f} images/s "
        f"({_held(best['images_per_s'] >= IMAGES_PER_S, IMAGES_PER_S)})."
    )


def _parts(rows: list[Row]) -> Iterator[str]:
    for kind, some in (
        ("part", [row for row in rows if not row["name"].startswith("kernel ")]),
        ("kernel", [row for row in rows if row["name"].startswith("kernel ")]),
    ):
        if some:
            most = max(some, key=lambda row: float(row["share"]))
            yield f"The {kind} of a step that takes most: {most['name']}, {most['share']:.0%}."


def _labels(rows: list[Row]) -> Iterator[str]:
    yield from _wrong(rows)
    whole: Row = {}
    stages: dict[str, list[Row]] = {}
    for row in rows:
        if row["name"].startswith("pseudo-labels "):
            whole = row
            stages[whole["name"]] = []
        elif "seconds" in row:
            stages[whole["name"]].append(row)
    # The last one is the largest.
    most = max(stages[whole["name"]], key=lambda row: float(row["seconds"]))
    held = whole["seconds"] <= LABEL_SECONDS
    yield (
        f"{whole['name']}: {whole['seconds']:.2f} s"
        + (f" ({_held(held, LABEL_SECONDS)})" if whole["name"] == MSMT17 else "")
        + f"; the stage that costs most is {most['name'].strip()}, {most['seconds']:.2f} s."
    )


def _evaluation(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield f"{row['name']}: {row['seconds']:.2f} s, {row['ratio']:.2f} of the bare product."


def _runs(rows: list[Row]) -> Iterator[str]:
    yield from _right(rows)
    for row in rows:
        if "images_per_s" in row:
            yield (
                f"{row['name']}, on {row['on']}: {row['images_per_s']:,.0f} images/s, "
                f"{row['input_share']:.0%} of the time waiting for images."
            )
    for kind in ("estimate", "evaluate"):
        took = [row for row in rows if row["name"].endswith(f"/{kind}")]
        if took:
            each = ", ".join(f"{row['seconds']:.1f}" for row in took)
            yield f"Seconds of each {kind}, in the order of the runs: {each}."


def _held(is_held: bool, goal: float) -> str:
    return f"goal {goal:g}: {'reached' if is_held else 'MISSED'}"


JUDGES: dict[str, Callable[[list[Row]], Iterator[str]]] = {
    "tests": _right,
    "checks": _right,
    "host": _host,
    "goal": _goal,
    "parts": _parts,
    "labels": _labels,
    "evaluation": _evaluation,
    "cuml": _right,
    "doctor": _right,
    "runs": _runs,
}
