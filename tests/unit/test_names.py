"""A class name stands for one thing: whoever reads it need not ask which module it came from."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The modules that may share a class name, and why. An entry goes as soon as one of its classes does.
SHARED: dict[str, tuple[set[str], str]] = {
    "Answer": ({"cli/answer", "client/reading"}, "what a command shows of a run, and what the service sent"),
    "Body": ({"egress/request_body", "service/intake/reading"}, "the body of a request, to be sent on or to be read"),
}


def classes(package: Path) -> dict[str, set[str]]:
    """Return the modules that define each class name, at any depth, but for what is made from others."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path in package.rglob("*.py"):
        module = path.relative_to(package).with_suffix("").as_posix()
        text = path.read_text()
        if "Written by scripts/generate-docs" in text:
            continue
        for node in ast.walk(ast.parse(text, str(path))):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(module)
    return dict(found)


CLASSES = classes(ROOT / "sandbox")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_a_class_name_stands_for_one_thing(name: str) -> None:
    allowed, _ = SHARED.get(name, (set[str](), ""))
    modules = CLASSES[name]
    assert len(modules) == 1 or modules <= allowed, f"{name} stands in {', '.join(sorted(modules))}"
