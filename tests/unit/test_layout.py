"""Rules of the source tree: who imports what, who prints, how long things get, what is described."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox.container.harness_files import harness_source, startup_source

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sandbox"
# Built-in scripts are programs for the sandbox, not part of the package.
SCRIPTS = set((PACKAGE / "templates").glob("*.py")) - {PACKAGE / "templates/__init__.py"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path not in SCRIPTS)
PURE = (
    "errors",
    "models",
    "run/outcome",
    "container/spec",
    "container/verify",
    "cell/spec",
    "cell/verify",
    "environment/requirements",
    "environment/lock",
    "environment/tree",
    "environment/identity",
    "egress/addresses",
    "egress/answer_head",
    "egress/client_hello",
    "egress/request_body",
    "egress/request_head",
    "egress/rules",
    "service/history/fair_share",
    "service/history/row",
    "service/history/secret_mask",
    "service/history/told",
    "service/routes/prefer",
    "service/webhooks/rules",
    "host/facts",
)
IO_MODULES = {
    "asyncio", "fcntl", "glob", "http", "io", "multiprocessing", "os", "requests", "select", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time", "random", "urllib",
}  # fmt: skip # a table
IO_CALLS = {
    "open", "print", "input", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir",
    "stat", "lstat", "mkdir", "unlink", "iterdir", "glob", "rglob", "touch", "resolve", "expanduser", "cwd", "home",
}  # fmt: skip # a table
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE = re.compile(r"(utils?|helpers?|managers?|misc|common)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the full name of every imported module, wherever the import stands, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the text of what is called, such as `sys.exit`, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public(tree: ast.Module) -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Yield public classes and functions of a module, and public methods of public classes."""
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


INSIDE = sorted((PACKAGE / "inside").rglob("*.py"))


def at(path: Path, line: int, what: str) -> str:
    """Return an offender as editors find it: file, line, what."""
    return f"{path.relative_to(ROOT).as_posix()}:{line}: {what}"


def test_only_podman_engine_imports_podman() -> None:
    # The index is asked over HTTP, by the client that podman-py brings along.
    allowed = {"podman.py": {"podman", "requests"}, "pages.py": {"requests"}}
    assert [
        at(path, line, name)
        for path in SOURCES
        for name, line in imports(tree_of(path))
        if name.split(".")[0] in {"podman", "requests"} - allowed.get(path.name, set())
    ] == []


def test_only_the_command_line_prints_or_exits() -> None:
    ending = {"print", "sys.exit", "exit", "quit", "os._exit", "os.abort", "SystemExit", "input"}
    found = []
    for path in SOURCES:
        # The harness is the last process of its sandbox; what prepares a tree ends each fork that compiles a module.
        if path.parent.name in ("cli", "harness", "image_tree"):
            continue
        tree = tree_of(path)
        found += [at(path, line, name) for name, line in called(tree) if name in ending or name.startswith("click.")]
        found += [at(path, line, name) for name, line in imports(tree) if name == "click"]
    assert found == []


def test_imports_are_absolute() -> None:
    assert [
        at(path, line, name) for path in SOURCES for name, line in imports(tree_of(path)) if name.startswith(".")
    ] == []


def test_what_runs_inside_imports_the_standard_library_and_its_own_package_alone() -> None:
    found = []
    for path in INSIDE:
        own = f"sandbox.inside.{path.parent.name}." if path.parent.name in ("harness", "image_tree") else "/"
        found += [
            at(path, line, name)
            for name, line in imports(tree_of(path))
            if not name.startswith(own) and name.split(".")[0] not in sys.stdlib_module_names
        ]
    assert found == []


def test_what_runs_inside_parses_as_python_3_8() -> None:
    for path in INSIDE:
        ast.parse(path.read_text(), str(path), feature_version=(3, 8))


@pytest.mark.parametrize("source", [harness_source, startup_source])
def test_a_name_at_the_top_of_a_module_of_the_harness_is_its_own_in_the_joined_file(source: Callable[[], str]) -> None:
    tree = ast.parse(source(), feature_version=(3, 8))
    names = [name for node in tree.body for name in defined(node) if name != "TYPE_CHECKING"]
    assert sorted(names) == sorted(set(names))
    assert names
    assert not [
        name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in [node.module]
        if "sandbox" in (name or "")
    ]


def test_every_module_of_the_harness_is_in_the_joined_file() -> None:
    joined = set(re.findall(r"^# ---- (\S+)$", harness_source() + startup_source(), re.MULTILINE))
    assert joined == {path.name for path in (PACKAGE / "inside/harness").glob("*.py")} - {"__init__.py"}


def defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_deciding_modules_do_no_io() -> None:
    found = []
    for name in PURE:
        path = PACKAGE / f"{name}.py"
        tree = tree_of(path)
        found += [
            at(path, line, module)
            for module, line in imports(tree)
            if module.split(".")[0] in IO_MODULES and module not in ("signal", "urllib.parse")
        ]
        found += [at(path, line, call) for call, line in called(tree) if call.split(".")[-1] in IO_CALLS]
    assert found == []


def test_modules_are_short_enough_to_read() -> None:
    texts = {path: path.read_text() for path in SOURCES}
    lines = {
        path: len(text.splitlines()) for path, text in texts.items() if "Written by scripts/generate-docs" not in text
    }
    assert [at(path, count, "too long") for path, count in lines.items() if count > MAX_MODULE_LINES] == []


def test_what_the_formatter_leaves_alone_has_a_reason() -> None:
    """Long lines are ruff's to find (E501)."""
    bare = re.compile(r"# fmt: (skip|off)\s*$")
    files = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *(ROOT / "scripts").iterdir()]
    assert [
        at(path, number, "no reason")
        for path in files
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if bare.search(line)
    ] == []


def test_functions_are_short_enough_to_read() -> None:
    assert [
        at(path, node.lineno, f"{node.name} has {size} lines")
        for path in SOURCES
        for node in functions(tree_of(path))
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ] == []


def test_modules_say_what_they_are_for() -> None:
    found = [at(path, 1, "no docstring") for path in SOURCES if not ast.get_docstring(tree_of(path))]
    assert found + [at(path, 1, "a vague name") for path in SOURCES if VAGUE.fullmatch(path.stem)] == []


def test_public_names_are_described() -> None:
    assert [
        at(path, node.lineno, name)
        for path in SOURCES
        for name, node in public(tree_of(path))
        if not ast.get_docstring(node)
    ] == []


def test_a_wrong_import_in_any_package_breaks_the_order(tmp_path: Path) -> None:
    """Each package and module imports the command line, which is above all of them.

    `lint-imports` must name every one.
    """
    copy = tmp_path / "sandbox"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    below = [
        path
        for path in copy.iterdir()
        if path.name not in ("cli", "__main__.py", "__init__.py", "py.typed", "_policies")
    ]
    for path in below:
        with (path / "__init__.py" if path.is_dir() else path).open("a") as file:
            file.write("\nimport sandbox.cli.main\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1, found.stdout + found.stderr
    wrong = set(re.findall(r"^sandbox\.(\w+) is not allowed to import sandbox\.cli", found.stdout, re.MULTILINE))
    assert wrong == {path.stem for path in below}


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_changelog_begins_with_the_package_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", sandbox.__version__]
