"""Rules of the source tree: who imports what, who prints, how long things get, what is described."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandbox
from sandbox.container.harness_files import harness_source

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sandbox"
# Built-in scripts are programs for the sandbox, not part of the package.
SCRIPTS = set((PACKAGE / "templates").glob("*.py")) - {PACKAGE / "templates/__init__.py"}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path not in SCRIPTS)
PURE = (
    "errors", "models", "run/outcome", "container/spec", "container/verify", "cell/spec", "cell/verify",
    "environment/requirements", "environment/lock", "environment/tree", "environment/identity",
    "egress/addresses", "egress/answer_head", "egress/client_hello", "egress/request_body", "egress/request_head", "egress/rules",
    "service/history/fair_share", "service/history/row", "service/history/secret_mask", "service/history/told",
    "service/routes/prefer", "service/webhooks/rules", "host/facts",
)  # fmt: skip
IO_MODULES = {
    "asyncio", "fcntl", "glob", "http", "io", "multiprocessing", "os", "requests", "select", "shutil", "signal",
    "socket", "subprocess", "tempfile", "threading", "time", "random", "urllib",
}  # fmt: skip
IO_CALLS = {
    "open", "print", "input", "read_text", "read_bytes", "write_text", "write_bytes", "exists", "is_file", "is_dir",
    "stat", "lstat", "mkdir", "unlink", "iterdir", "glob", "rglob", "touch", "resolve", "expanduser", "cwd", "home",
}  # fmt: skip
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE = re.compile(r"(utils?|helpers?|managers?|misc|common)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of every imported module, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def called(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the text of what is called, such as `sys.exit`, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield public classes and functions of a module, and public methods of public classes."""
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner


every_source = pytest.mark.parametrize("path", SOURCES, ids=name_of)
every_inside = pytest.mark.parametrize("path", sorted((PACKAGE / "inside").rglob("*.py")), ids=name_of)


@every_source
def test_only_podman_engine_imports_podman(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(tree_of(path))} & {"podman", "requests"}
    # The index is asked over HTTP, by the client that podman-py brings along.
    assert found <= {"podman.py": {"podman", "requests"}, "pages.py": {"requests"}}.get(path.name, set())


@every_source
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    if (
        path.parent.name == "cli" or PACKAGE / "inside/harness" in path.parents
    ):  # the harness is the last process of its sandbox
        return
    ending = {"print", "sys.exit", "exit", "quit", "os._exit", "os.abort", "SystemExit", "input"}
    tree = tree_of(path)
    found = [f"{name} in line {line}" for name, line in called(tree) if name in ending or name.startswith("click.")]
    assert found == []
    assert "click" not in set(imports(tree))


@every_source
def test_imports_are_absolute(path: Path) -> None:
    assert [name for name in imports(tree_of(path)) if name.startswith(".")] == []


@every_inside
def test_what_runs_inside_imports_the_standard_library_and_its_own_package_alone(path: Path) -> None:
    own = "sandbox.inside.harness." if path.parent.name == "harness" else "/"
    found = {name for name in imports(tree_of(path)) if not name.startswith(own)}
    assert {name for name in found if name.split(".")[0] not in sys.stdlib_module_names} == set()


@every_inside
def test_what_runs_inside_parses_as_python_3_8(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_a_name_at_the_top_of_a_module_of_the_harness_is_its_own_in_the_joined_file() -> None:
    tree = ast.parse(harness_source(), feature_version=(3, 8))
    names = [name for node in tree.body for name in defined(node) if name != "TYPE_CHECKING"]
    assert sorted(names) == sorted(set(names))
    assert {"main", "compile_program", "clean"} <= set(names)
    assert not [
        name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for name in [node.module]
        if "sandbox" in (name or "")
    ]


def test_every_module_of_the_harness_is_in_the_joined_file() -> None:
    joined = set(re.findall(r"^# ---- (\S+)$", harness_source(), re.MULTILINE))
    assert joined == {path.name for path in (PACKAGE / "inside/harness").glob("*.py")} - {"__init__.py"}


def defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))


@pytest.mark.parametrize("name", PURE)
def test_deciding_modules_do_no_io(name: str) -> None:
    tree = tree_of(PACKAGE / f"{name}.py")
    assert {module for module in imports(tree) if module.split(".")[0] in IO_MODULES} - {
        "signal",
        "urllib.parse",
    } == set()
    assert [f"{call} in line {line}" for call, line in called(tree) if call.split(".")[-1] in IO_CALLS] == []


@every_source
def test_module_is_short_enough_to_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_MODULE_LINES, f"{lines} lines"


@every_source
def test_functions_are_short_enough_to_read(path: Path) -> None:
    sizes = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(tree_of(path))}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


@every_source
def test_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
    assert not VAGUE.fullmatch(path.stem)


@every_source
def test_public_names_are_described(path: Path) -> None:
    missing = [
        name
        for name, node in public(tree_of(path))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not ast.get_docstring(node)
    ]
    assert missing == []


def test_a_wrong_import_in_any_package_breaks_the_order(tmp_path: Path) -> None:
    """Each package and module imports the command line, which is above all of them: `lint-imports` must name every one."""
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
