"""The documentation is part of the build: what exists is described, and what is described exists."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sandbox import errors, templates
from sandbox.cli.main import cli
from sandbox.client import Client
from sandbox.errors import SandboxError
from sandbox.inside.harness.compiling import compile_program
from sandbox.inside.harness.program import GIVEN, variables
from sandbox.inside.harness.program_functions import FUNCTIONS
from sandbox.models import EXIT_STATUS, Outcome
from sandbox.service.config.load import variable_of
from sandbox.service.config.model import KEYS, ServiceConfig

ROOT = Path(__file__).parents[2]
GENERATED = {".git", "build", "dist", "node_modules", "__pycache__", ".venv", ".hypothesis"}
CLASSES: list[type[SandboxError]] = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, SandboxError) and value is not SandboxError
]


def project_files() -> list[Path]:
    """Return every file of the project that is text; works in a copy without git, too."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        ignored = any(part in GENERATED or part.endswith(("_cache", ".egg-info")) for part in parts)
        if path.is_file() and not ignored and path.suffix != ".pyc":
            found.append(path)
    return found


PAGES = [path for path in project_files() if path.suffix == ".md"]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}


def fenced(text: str, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the table below a heading as first cell → other cells."""
    part = TEXTS[page].split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


COMMANDS = dict(walk(cli, ()))
every_command = pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "sandbox")


# ---- errors, outcomes, exit statuses


def test_every_error_code_is_documented_with_its_numbers() -> None:
    table = rows("docs/errors.md", "Errors")
    assert {code: cells[:2] for code, cells in table.items()} == {
        kind.code: [str(kind.exit_status), str(kind.http_status)] for kind in CLASSES
    }


def test_every_outcome_is_documented_with_its_exit_status() -> None:
    table = rows("docs/errors.md", "Outcomes")
    assert {name: cells[0] for name, cells in table.items()} == {
        outcome.value: str(EXIT_STATUS[outcome]) for outcome in Outcome
    }


def test_the_page_of_errors_says_when_the_service_raises_what_and_how() -> None:
    text = TEXTS["docs/errors.md"]
    assert "later service" not in text
    assert "reserved, nothing raises it" not in text
    sources = "".join(path.read_text() for path in (ROOT / "sandbox/service").rglob("*.py"))
    exact = set(re.findall(r"http_status=(\d+)", sources))
    assert exact == set(re.findall(r"(\d+) for a", text.split("## Errors", 1)[1].split("|", 1)[0]))


def test_table_of_exit_statuses_is_complete() -> None:
    wanted = {*EXIT_STATUS.values(), *(kind.exit_status for kind in CLASSES)}
    assert wanted <= {int(number) for number in rows("docs/errors.md", "Exit statuses")}


# ---- the command line


def test_command_line_reference_is_current() -> None:
    generator = runpy.run_path(str(ROOT / "scripts/generate-docs"))
    assert TEXTS["docs/cli.md"] == generator["page"](), "run scripts/generate-docs"
    assert (ROOT / "docs/sandbox.1").read_text() == generator["manual"](), "run scripts/generate-docs"


def test_the_api_s_description_is_current() -> None:
    generator = runpy.run_path(str(ROOT / "scripts/generate-docs"))
    assert (ROOT / "docs/openapi.json").read_text() == generator["description"](), "run scripts/generate-docs"


@every_command
def test_reference_has_the_options_that_help_shows(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    wanted = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.output.split("Options:", 1)[1].split("Commands:")[0]))
    part = TEXTS["docs/cli.md"].split(f"\n## {' '.join(('sandbox', *path))}\n", 1)[1].split("\n## ", 1)[0]
    assert wanted - {"--help"} <= set(re.findall(r"`(--[a-z-]+)`", part))


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield every line of a code block that calls `sandbox`, with its page."""
    for page, text in TEXTS.items():
        for block in fenced(text, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"^([A-Z_]+=\S* )+", "", line.removeprefix("$ "))
                if command.startswith("sandbox "):
                    yield page, command.partition(" #")[0].split(" | ")[0].split(" >")[0]


def unknown(line: str) -> list[str]:
    """Return the words of a call of `sandbox` that are no command and no option of theirs."""
    words = shlex.split(line)[1:]
    command: click.Command = cli
    missing = []
    options = {name for entry in cli.params for name in entry.opts} | {"--help"}
    while words and isinstance(command, click.Group):
        word = words.pop(0)
        if word.startswith("-"):
            missing += [word] if word not in options else []
            continue
        found = command.get_command(click.Context(command), word)
        if found is None:
            return [*missing, word]
        command = found
    options = {name for entry in command.params for name in entry.opts} | {"--help"}
    given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return [*missing, *sorted(given - options)]


def test_documented_commands_exist() -> None:
    assert unknown("sandbox run --no-such") == ["--no-such"]
    assert [f"{page}: {line}: {word}" for page, line in command_lines() for word in unknown(line)] == []


# ---- the service's settings


def test_settings_are_described_as_they_are() -> None:
    generator = runpy.run_path(str(ROOT / "scripts/generate-docs"))
    assert TEXTS["docs/service.md"] == generator["service"](), "run scripts/generate-docs"


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_its_default_its_range_and_its_meaning(key: str) -> None:
    expected, default, meaning = rows("docs/service.md", "Settings")[key]
    assert meaning == KEYS[key].description
    assert len(expected) > 5
    bounds = [
        limit for rule in KEYS[key].metadata if (limit := getattr(rule, "ge", getattr(rule, "le", None))) is not None
    ]
    assert all(f"{bound:.12g}" in expected for bound in bounds)
    value = ServiceConfig().model_dump(mode="json")[key.partition(".")[0]][key.partition(".")[2]]
    if not KEYS[key].default_factory:
        assert default == ("none" if value is None else f"`{json.dumps(value)}`")


def test_where_settings_come_from_is_told() -> None:
    part = TEXTS["docs/service.md"].split("\n## Settings\n", 1)[1].split("\n## ", 1)[0]
    for name in (
        "--config",
        "$SANDBOX_CONFIG",
        "/etc/podman-sandbox-runner/service.toml",
        "SANDBOX_SECTION__KEY",
        variable_of("queue.running"),
    ):
        assert name in part


# ---- the service's client


def test_every_method_of_the_client_is_documented() -> None:
    methods = {name for name, value in vars(Client).items() if callable(value) and not name.startswith("_")}
    named = {found for cell in rows("docs/service.md", "From Python") for found in re.findall(r"(?:^|`)(\w+)\(", cell)}
    assert methods == named


# ---- links, paths, names


def numbered(page: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a page, each with where it stands."""
    for number, line in enumerate(TEXTS[page].splitlines(), 1):
        yield f"{page}:{number}", line


def resolves(page: str, link: str) -> bool:
    """Say whether a relative link of a page leads to a file, and to a heading in it."""
    file, _, anchor = link.partition("#")
    target = (ROOT / page).parent / file if file else ROOT / page
    if not anchor or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_relative_links_resolve() -> None:
    broken = []
    for page in TEXTS:
        in_block = False
        for place, line in numbered(page):
            in_block ^= line.startswith("```")
            links = [] if in_block else re.findall(r"\]\(([^)\s]+)\)", line)
            broken += [
                f"{place}: {link}" for link in links if not re.match(r"[a-z]+:", link) and not resolves(page, link)
            ]
    assert broken == []


def test_named_project_files_exist() -> None:
    named = re.compile(r"(?<![\w/.-])(?:scripts|policies|tests|docs|sandbox)/[\w./-]*\w")
    assert [
        f"{place}: {name}"
        for page in TEXTS
        for place, line in numbered(page)
        for name in named.findall(line)
        if not (ROOT / name).exists() and "/NAME" not in name
    ] == []


def test_no_file_names_a_developers_machine() -> None:
    own = re.escape(str(ROOT))
    telling = re.compile(rf"(?<![\w.$}}-])(/home/\w|/Users/\w|/root/\w|{own}(/|\b))")
    found = []
    for path in project_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if telling.search(line) and path != Path(__file__):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_page_on_architecture_lists_the_packages_in_the_order_that_holds() -> None:
    text = TEXTS["docs/architecture.md"]
    table = text.split("## The packages", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    there = {
        path.stem for path in (ROOT / "sandbox").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert set(listed) == there - {"__init__", "__main__"}
    layers = re.search(r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert layers is not None
    floors = [set(re.findall(r"\w+", line)) for line in re.findall(r'"([^"]+)"', layers[1])]
    assert [name for name in listed if name not in set().union(*floors)] == []
    heights = [next(height for height, floor in enumerate(floors) if name in floor) for name in listed]
    assert heights == sorted(heights)
    assert len(text.splitlines()) <= 150


def test_each_package_says_what_it_is_for_and_where_to_begin() -> None:
    packages = [path for path in (ROOT / "sandbox").rglob("__init__.py") if path.parent != ROOT / "sandbox"]
    silent = {
        path.parent.name: missing
        for path in packages
        if (missing := [word for word in ("import", "read ") if word not in path.read_text().lower()])
        and path.parent.name != "templates"
    }
    assert silent == {}


def test_every_place_that_answers_a_question_is_there() -> None:
    table = TEXTS["docs/architecture.md"].split("## Where is it decided?", 1)[1]
    named = re.findall(r"`([\w/]+\.(?:py|toml))`", table)
    assert len(re.findall(r"^\| .*\?", table, re.MULTILINE)) >= 10
    assert [name for name in named if not ((ROOT / name).is_file() or (ROOT / "sandbox" / name).is_file())] == []


def test_threat_model_and_escape_tests_name_the_same_boundaries() -> None:
    named = {cells[-1].strip("`") for cells in rows("docs/threat-model.md", "Boundaries").values()}
    assert named == {path.name for path in (ROOT / "tests/escape").glob("test_*.py")}


def test_every_dependency_is_justified() -> None:
    wanted = re.findall(r'^\s*"([a-z-]+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert [name for name in [*wanted, "hatchling"] if f"`{name}`" not in TEXTS["docs/dependencies.md"]] == []


# ---- the code contract


def contract_names() -> list[str]:
    """Return the names that the harness puts into a program's namespace."""
    return [*variables(dict.fromkeys(GIVEN, ""), b"", b""), *(function.__name__ for function in FUNCTIONS)]


def test_every_name_a_program_finds_is_documented() -> None:
    names = contract_names()
    assert {"payload", "topic", "log", "save_file"} <= set(names)
    assert [name for name in names if f"| `{name}" not in TEXTS["docs/writing-scripts.md"]] == []


@pytest.mark.parametrize("name", ["result", "output_topic", "additional_data"])
def test_every_name_a_program_may_set_is_documented(name: str) -> None:
    assert f"| `{name}` |" in TEXTS["docs/writing-scripts.md"]


def test_python_examples_compile() -> None:
    failing = []
    for page, text in TEXTS.items():
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            try:
                compile_program(block.group(1), "example.py")
            except SyntaxError as error:
                failing.append(f"{page}:{text.count(chr(10), 0, block.start()) + 1}: {error!r}")
    assert failing == []


def test_shown_templates_are_the_shipped_ones() -> None:
    shown = re.split(r"<!-- template: (\w+) -->", TEXTS["docs/writing-scripts.md"])[1:]
    named = dict(zip(shown[::2], shown[1::2], strict=True))
    assert named
    assert [name for name, after in named.items() if fenced(after, "python")[0] != templates.get(name).code] == []


# ---- what a newcomer looks for


def test_project_has_the_usual_files() -> None:
    names = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LICENSE"]
    assert [name for name in names if not (ROOT / name).read_text().strip()] == []


@pytest.mark.parametrize("command", ["scripts/quickstart", "scripts/test"])
def test_readme_names_the_two_commands_and_they_can_be_run(command: str) -> None:
    assert command in TEXTS["README.md"]
    assert (ROOT / command).stat().st_mode & 0o111


def test_prose_is_plain() -> None:
    empty = re.compile(r"\b(simply|robust|seamless)", re.IGNORECASE)
    assert [f"{place}: {line}" for page in TEXTS for place, line in numbered(page) if empty.search(line)] == []
