"""Stages of a run, and their names in the run folder: "ingest/target", "iteration-03/train", ..."""

import re
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

Kind = Literal["ingest", "pretrain", "iteration", "final", "supervised"]
_NAME = re.compile(r"(ingest|pretrain|iteration|final|supervised)(?:-(\d{2,4}))?(?:/([a-z-]+))?")


@dataclass(frozen=True)
class Stage:
    """A model of the run (pretraining's, an iteration's, the supervised bound's), or one `part` of
    the work on it: train, extract, estimate, ... Files of a model lie in the folder of its name.

    "ingest" has the domains as its parts. "final" is a labelling by the last iteration's features,
    made only to judge that iteration's model.
    """

    kind: Kind
    iteration: int = 0  # from 1; 0 of other kinds
    part: str = ""

    @property
    def name(self) -> str:
        """pretrain, iteration-03, ...: of the model, its folder and its rows in tables."""
        return f"{self.kind}-{self.iteration:02d}" if self.iteration else self.kind

    @property
    def title(self) -> str:
        """The name, or what a reader calls it: of rows of scores."""
        return {"pretrain": "direct transfer", "supervised": "supervised bound"}.get(
            self.kind, self.name
        )

    def __str__(self) -> str:
        return f"{self.name}/{self.part}" if self.part else self.name

    @property
    def model(self) -> "Stage":
        return replace(self, part="")

    def at(self, part: str) -> "Stage":
        return replace(self, part=part)

    def file(self, name: str) -> str:
        """A file in the model's folder, by its name in the run folder."""
        return f"{self.name}/{name}"

    @classmethod
    def parse(cls, text: Any) -> "Stage | None":
        """The stage whose `str` this is; None for anything else."""
        found = _NAME.fullmatch(text) if isinstance(text, str) else None
        if found is None or (found[1] == "iteration") != bool(found[2]):
            return None
        return cls(cast(Kind, found[1]), int(found[2] or 0), found[3] or "")


PRETRAIN, FINAL, SUPERVISED = Stage("pretrain"), Stage("final"), Stage("supervised")


def iteration_stage(number: int) -> Stage:
    return Stage("iteration", number)


def ingest_stage(domain: str) -> Stage:
    return Stage("ingest", part=domain)
