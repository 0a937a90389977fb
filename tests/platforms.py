"""What a test found out about one kind of host, written into its report.

`scripts/platforms` makes docs/platforms.md of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

PROPERTY = "platform"
Record = Callable[[str, object], None]  # pytest's fixture `record_property`


def minor(version: str) -> str:
    """Return the first two numbers in a text, such as `5.4`: what is documented outlives a security update."""
    found = re.search(r"\d+\.\d+", version)
    assert found is not None, version
    return found[0]


def record(record_property: Record, *, cgroup: str, receipt: dict[str, Any], policies: dict[str, str]) -> None:
    """Write down which control was held by what on this kind of host, and which policies run.

    `receipt` is one of a run under `default`, as `sandbox run --json` prints it.
    """
    runtime = receipt["runtime"].split()[0]
    write(
        record_property,
        cgroup=cgroup,
        podman=minor(receipt["engine"]),
        runtime=f"{runtime} {minor(receipt['runtime'])}",
        controls={row["control"]: f"{row['status']}: {row['mechanism']}" for row in receipt["controls"]},
        policies=policies,
    )


def record_useless_runtime(record_property: Record, *, cgroup: str, podman: str, runtime: str, why: str) -> None:
    """Write down that an OCI runtime starts nothing on this kind of host."""
    write(
        record_property,
        cgroup=cgroup,
        podman=minor(podman),
        runtime=runtime,
        controls={},
        policies={"default": why, "strict": why},
    )


def write(record_property: Record, /, **found: Any) -> None:
    """Write one finding as JSON."""
    record_property(PROPERTY, json.dumps(found, sort_keys=True))
