"""Which libraries a request asks for: a field, a `requirements.txt`, a `pyproject.toml` or a script's own header.

All four become the same thing: sorted, canonical requirements such as `pandas<2,>=1.3` or `uvicorn[standard];
python_version < "3.12"`, the first two with the sha256 hashes that stand behind them; the latter two also say which
Pythons they are for. Only names that an index resolves are taken: an address, a path or a repository would reach around
the index, its hashes and the policy. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sandbox.environment.elsewhere import check_format
from sandbox.errors import InvalidRequest
from sandbox.index.package_names import POPULAR

if TYPE_CHECKING:
    from packaging.requirements import Requirement

__all__ = [
    "parse_libraries",
    "parse_requirements_txt",
    "without_hashes",
]

MAX_REQUIREMENTS = 1_000  # as many as a lock may have: what is exported from one can be asked for
MAX_REQUIREMENT_CHARS = 200
MAX_TEXT_CHARS = 1 << 20  # a hash for each file of a few hundred libraries
MAX_HASHES = 500
MAX_PARENTHESES = 10

_COMMENT = re.compile(r"(?:^|\s)#.*$")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_OPERATOR = re.compile(r"\s*[<>=!~]")
_ADDRESS = re.compile(r"://|^(?:\.{1,2}(?:/|$)|/|~)|^\w+\+|\.(?:whl|tar\.gz|tgz|tar\.bz2|zip)$", re.IGNORECASE)
_HASH = re.compile(r"--hash[= ]sha256:([0-9a-fA-F]{64})")
_HASHES = " --hash=sha256:"
_INCLUDED = re.compile(r"(?:-r|--requirement)(?:\s*=\s*|\s*)(\S.*)")
HASHED_HINT = (
    "write the hashes of all libraries, also of those that others need, or of none; "
    "uv pip compile --generate-hashes, pip-compile --generate-hashes and sandbox env export --format requirements do"
)
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?:\[[^\]]*\])?"
_COMMAND = re.compile(r"^(?:python3? -m )?pip3? install\s+")
# What people write for a requirement, and what they mean.
_SLIPS = (
    (r"^(?:import|from)\s+([A-Za-z0-9_]+).*$", r"\1"),
    (r"=>", ">="),
    (r"=<", "<="),
    (r"(?<![=<>!~])=(?!=)", "=="),
    (rf"^({_NAME})\s*,\s*([<>=!~])", r"\1\2"),
    (rf"^({_NAME})\s*@?\s*[\^~]v?(\d[\w.]*)$", r"\1~=\2"),
    (rf"^({_NAME})\s*@?\s*\^?v?(\d[\w.]*)$", r"\1==\2"),
    (r"(?<=[\w.*])\s+(?=[<>=!~])", ","),
    (r"\s+", "-"),
)
_INDEX_HINT = "remove it: libraries come from the index that pip is configured to use on this host (pip.conf, PIP_*)"
_BINARY_HINT = "remove it: the policy decides whether source archives are allowed (build.allow_sdists)"
_OPTION_HINTS = {
    **dict.fromkeys(("-r", "--requirement"), "put the lines of that file in its place"),
    **dict.fromkeys(("-c", "--constraint"), "write each constraint behind its library, for example pandas>=1.3,<2"),
    **dict.fromkeys(("-e", "--editable"), "put the module's code into the script, or publish it to your index"),
    **dict.fromkeys(("-i", "--index-url", "--extra-index-url", "-f", "--find-links"), _INDEX_HINT),
    **dict.fromkeys(("--no-index", "--trusted-host"), _INDEX_HINT),
    **dict.fromkeys(("--no-binary", "--only-binary", "--prefer-binary"), _BINARY_HINT),
    "--pre": "name the version that you want instead, for example pandas>=3.0rc1",
    "--require-hashes": "write it on a line of its own, in a requirements file",
    "--hash": "write --hash=sha256:… with 64 hexadecimal digits; other digests are not taken",
}  # fmt: skip # a command line


def parse_libraries(text: str) -> tuple[str, ...]:
    """Return the requirements of a field: one per line or separated by commas, `#` begins a comment.

    A comma before an operator belongs to the constraint, so `pandas>=1.3,<2, numpy` are two. Hashes are those of
    `parse_requirements_txt`, whose answer is read as it is.
    Raises `InvalidRequest` with the line and, where one is near, the form that was meant.
    """
    check_text(text, "the libraries")
    return collected(
        _with_hashes(entry.strip(), f"libraries, line {number}")
        for number, line in enumerate(text.split("\n"), 1)
        for entry in _split(_COMMENT.sub("", line))
        if entry.strip()
    )


def parse_requirements_txt(
    text: str, *, name: str = "requirements.txt", include: Callable[[str], tuple[str, ...]] | None = None
) -> tuple[str, ...]:
    """Return the requirements of a file in pip's format; sha256 hashes stay, as ` --hash=sha256:…` behind each.

    `include` gives those of a file that `-r` names. Raises `InvalidRequest` with file and line, also for every other
    option: a file can't choose an index.
    """
    check_text(text, name)
    check_format(text, name)
    found: list[str] = []
    hashed = ""
    for number, line in _logical_lines(text.removeprefix("\ufeff")):
        where = f"{name}:{number}"
        if line == "--require-hashes":
            hashed = where
        elif include is not None and (other := _INCLUDED.fullmatch(line)):
            found += include(other[1])
        else:
            found.append(_with_hashes(line, where))
    if hashed and (bare := next((one for one in found if _HASHES not in one), None)):
        raise InvalidRequest(f"{hashed}: --require-hashes is asked for, and {bare} has no hash", hint=HASHED_HINT)
    return collected(found)


def without_hashes(requirement: str) -> str:
    """Return a requirement for people."""
    return requirement.partition(_HASHES)[0]


def check_text(text: str, what: str, limit: int = MAX_TEXT_CHARS) -> None:
    """Raise `InvalidRequest` for a text of more than `limit` characters, or with control characters."""
    if len(text) > limit:
        raise InvalidRequest(f"{what} take more than {limit // 1024} KiB", hint="list the libraries, and nothing else")
    if found := _CONTROL.search(text.replace("\r\n", "\n")):
        line = text.count("\n", 0, found.start()) + 1
        raise InvalidRequest(
            f"{what}, line {line}: has the control character {found[0]!r}", hint="remove it, or type the line again"
        )


def collected(requirements: Iterable[str]) -> tuple[str, ...]:
    """Return the requirements, each once. Raises `InvalidRequest` for too many."""
    found = []
    for requirement in requirements:
        found.append(requirement)
        if len(found) > MAX_REQUIREMENTS:
            raise InvalidRequest(
                f"more than {MAX_REQUIREMENTS} libraries are asked for",
                hint="name only those that the code imports; their dependencies are added",
            )
    return tuple(sorted(set(found)))


def _split(line: str) -> Iterator[str]:
    """Yield the parts between those commas that stand outside of brackets, quotes and constraints."""
    start = depth = 0
    quote = ""
    for position, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[(":
            depth += 1
        elif char in "])":
            depth = max(0, depth - 1)
        elif char == "," and depth == 0 and not _OPERATOR.match(line, position + 1):
            yield line[start:position]
            start = position + 1
    yield line[start:]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield first line number and text of each line that says something, continued lines joined."""
    parts: list[str] = []
    first = 1
    # A comment ends a continued line, as in pip.
    for number, line in enumerate((*text.split("\n"), ""), 1):
        bare = _COMMENT.sub("", line.rstrip("\r"))
        first = first if parts else number
        parts.append(bare.removesuffix("\\"))
        if not bare.endswith("\\"):
            if joined := " ".join(parts).strip():
                yield first, joined
            parts = []


def _with_hashes(line: str, where: str) -> str:
    requirement, *options = re.split(r" (?=--?[A-Za-z])", " ".join(line.split()))
    hashes = set()
    for option in options:
        found = _HASH.fullmatch(option)
        if found is None:
            raise _option_refused(option, where)
        hashes.add(found[1].lower())
    if len(hashes) > MAX_HASHES:
        raise InvalidRequest(f"{where}: has more than {MAX_HASHES} hashes", hint="keep those of the files you use")
    return " ".join(
        (canonical_requirement(requirement, where), *(f"--hash=sha256:{digest}" for digest in sorted(hashes)))
    )


def canonical_requirement(entry: str, where: str) -> str:
    """Return one requirement in the form that all have. Raises `InvalidRequest`, which says `where` it stands."""
    from packaging.utils import canonicalize_name

    if len(entry) > MAX_REQUIREMENT_CHARS:
        raise InvalidRequest(
            f"{where}: a requirement has more than {MAX_REQUIREMENT_CHARS} characters: {_shown(entry)}",
            hint="write one library per line, or separate them with commas",
        )
    if entry.startswith("-"):
        raise _option_refused(entry, where)
    requirement = _parsed(entry)
    nearest = "" if requirement and not requirement.url else _nearest(entry)
    if not nearest and (_ADDRESS.search(entry) or (requirement and requirement.url)):
        raise InvalidRequest(
            f"{where}: {_shown(entry)} is an address or a path, and libraries are only taken from the package index",
            hint="write the library's name, and put a library of your own into an index that pip is configured to use",
        )
    if requirement is None or requirement.url:
        words = _COMMAND.sub("", entry).split()
        hint = f"did you mean {nearest}?" if nearest else "write a name and a constraint, as in pandas>=1.3,<2"
        # A name made of two is one that anybody may register.
        if len(words) > 1 and nearest == "-".join(words) and nearest.lower() not in POPULAR:
            hint = f"several libraries are separated by commas: {', '.join(words)}"
        raise InvalidRequest(f"{where}: {_shown(entry)} is not a requirement", hint=hint)
    extras = ",".join(sorted(map(canonicalize_name, requirement.extras)))
    specifier = ",".join(sorted(map(str, requirement.specifier)))
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{canonicalize_name(requirement.name)}{f'[{extras}]' if extras else ''}{specifier}{marker}"


def _parsed(entry: str) -> Requirement | None:
    from packaging.requirements import InvalidRequirement, Requirement

    try:  # each parenthesis takes the parser through all that it may begin
        return Requirement(entry) if entry.count("(") <= MAX_PARENTHESES else None
    except (InvalidRequirement, RecursionError):
        return None


def _nearest(entry: str) -> str:
    """Return the requirement that `entry` was meant to be, or ''."""
    bare = _COMMAND.sub("", entry.strip(" \t\"'`;,"))
    for candidate in (bare, *(re.sub(slip, meant, bare) for slip, meant in _SLIPS)):
        requirement = None if _ADDRESS.search(candidate) else _parsed(candidate)
        if requirement and not requirement.url:
            return candidate
    return ""


def _option_refused(option: str, where: str) -> InvalidRequest:
    word = re.split(r"[=\s]", option, maxsplit=1)[0]
    known = word if word.startswith("--") else word[:2]
    hint = _OPTION_HINTS.get(known, "remove it: a list of libraries has names and constraints only")
    return InvalidRequest(f"{where}: the option {word[:40]!r} is not taken", hint=hint)


def _shown(entry: str) -> str:
    return repr(re.sub(r"//[^/@\s]*@", "//***@", entry)[:80])
