"""The receipt's row on what a run is in, where its policy allows a cell: what was wanted, what it got, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from sandbox.models import ControlEvidence

CONTROL = "isolation"
WANTED = {"cell": "a cell", "auto": "a cell if its node is too fast for containers"}
SLOW_ENOUGH = "the messages of this node come no faster than containers are made"
FAST = "the messages of this node come faster than containers are made"
STARTS = f"{FAST}, and its first cell is being made"

PerRun = Literal["container", "auto", "cell"]


def in_container(per_run: PerRun, why: str) -> ControlEvidence:
    """Return the row of a run that might have had a cell and got a container of its own, which holds more."""
    evidence = f"a container of its own: {why}"
    return ControlEvidence(
        control=CONTROL, wanted=WANTED[per_run], status="proven", mechanism="container", evidence=evidence
    )


def in_cell(per_run: PerRun, evidence: Sequence[ControlEvidence]) -> tuple[ControlEvidence, ...]:
    """Return the evidence of a cell, whose row says as well why it is one where the node's pace has decided that."""
    if per_run != "auto":
        return tuple(evidence)
    return tuple(
        replace(row, wanted=WANTED[per_run], evidence=f"{row.evidence}; {FAST}") if row.control == CONTROL else row
        for row in evidence
    )
