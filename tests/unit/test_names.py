"""A class name stands for one thing: whoever reads it need not ask which module it came from."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TO_BECOME_ONE = "one thing that is declared twice; one declaration is to take the place of both"
# The modules that may share a class name, and why. An entry goes as soon as one of its classes does.
SHARED: dict[str, tuple[set[str], str]] = {
    "Answer": ({"cli/answer", "client/reading"}, "what a command shows of a run, and what the service sent"),
    "Asked": ({"runner", "service/intake/asked"}, "what a request comes down to, before and after policy"),
    "Body": ({"egress/request_body", "service/intake/reading"}, "the body of a request, to be sent on or to be read"),
    "CodeCheck": ({"client/answers", "run/code_check"}, TO_BECOME_ONE),
    "EgressRecord": ({"egress/connection", "models"}, TO_BECOME_ONE),
    "MissingModule": ({"client/answers", "run/code_check"}, TO_BECOME_ONE),
    "Policy": ({"client/answers", "policy/model"}, "the client's users know what the service tells of one by no other name"),
    "Problem": ({"client/answers", "run/code_check"}, TO_BECOME_ONE),
    "SavedFile": ({"client/answers", "models"}, "a file with its content, and what the service tells of one that it keeps"),
    "Template": ({"client/answers", "templates/__init__"}, "a built-in script, and what the service tells of it"),
    "Told": ({"cli/later", "client/calls", "run/execution"}, "what is told of a run while it goes on, at three places of its way"),
}  # fmt: skip


def classes(package: Path) -> dict[str, set[str]]:
    """Return the modules that define each class name, at any depth."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in package.rglob("*.py"):
        module = path.relative_to(package).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(module)
    return dict(found)


CLASSES = classes(ROOT / "sandbox")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_name_stands_for_one_thing(name: str) -> None:
    allowed, _ = SHARED.get(name, (set[str](), ""))
    modules = CLASSES[name]
    assert len(modules) == 1 or modules <= allowed, f"{name} stands in {', '.join(sorted(modules))}"
