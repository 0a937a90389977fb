"""The pages, as a reader follows them: their blocks in order, and one shell script of each page.

An HTML comment right before a block, which no reader sees, may say how it is followed:

    <!-- not run: REASON -->     left out; the test lists these
    <!-- run last -->            after all other blocks of all pages
    <!-- save as: NAME -->       the block is the content of this file
    <!-- run with: COMMAND -->   the block is a file whose path is the command's last word
    <!-- before: COMMANDS -->    what to call before it, such as for a file that the reader would have
    <!-- the result -->          the block is what the program right before it gives (tests/e2e/test_docs_results.py)

Without one, `sh` is called line by line, `python` goes to `sandbox run`, `toml` to `sandbox policy check`, and other
languages are not followed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(?P<language>\S*)\s*$")
COMMENT = re.compile(
    r"<!--\s*(?P<key>not run|run last|save as|run with|before|the result)\s*(?::\s*(?P<value>.*?))?\s*-->", re.DOTALL
)
USUALLY = {"python": "sandbox run --quiet", "toml": "sandbox policy check"}
END = "@@ the end"  # printed last: a script that a block breaks off is not followed
# A reader takes longer to type the next line.
UNTIL_IT_LISTENS = 'for _ in $(seq 200); do [ ! -S "$(sandbox config socket)" ] || break; sleep 0.1; done'
ENDINGS = {"python": ".py", "toml": ".toml"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: where it is, its language, its text, and what the comments before it say."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def followed(self) -> bool:
        return "not run" not in self.marks and (self.language == "sh" or self.language in USUALLY)


def pages() -> list[Path]:
    """Return the pages in the order in which they are followed: the README installs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page. A mark belongs to the next block, with nothing but marks in between."""
    lines = text.splitlines()
    start, number = 0, 0
    while number < len(lines):
        if (found := FENCE.match(lines[number])) is None:
            number += 1
            continue
        end = next(place for place in range(number + 1, len(lines)) if lines[place].startswith("```"))
        yield Block(
            page=page,
            line=number + 2,
            language=found["language"],
            text="\n".join(lines[number + 1 : end]) + "\n",
            marks=marks_before("\n".join(lines[start:number])),
        )
        start = number = end + 1


def marks_before(text: str) -> dict[str, str]:
    """Return the marks at the very end of a text."""
    found: dict[str, str] = {}
    while text.rstrip().endswith("-->"):
        text, _, comment = text.rstrip().rpartition("<!--")
        if mark := COMMENT.fullmatch(f"<!--{comment}"):
            found[mark["key"]] = mark["value"] or ""
    return found


def script(blocks: Iterable[Block], files: str) -> str:
    """Return the shell script that follows blocks; those that are files lie in the directory `files`, by their lines.

    Each command that fails is one line on descriptor 9, with its status and block, and the rest goes on.
    """
    lines = [
        "set -E -o pipefail",
        'trap \'printf "%s\\t%s\\t%s\\n" "$?" "$block" "$BASH_COMMAND" >&9\' ERR',
    ]
    for block in blocks:
        lines += [f"block={shlex.quote(block.name)}", f"echo {shlex.quote(f'@@ {block.name}')}"]
        if before := block.marks.get("before"):
            lines.append(waiting(before))
        lines += followed(block, files)
    return "\n".join([*lines, "trap - ERR", "kill $(jobs -p) 2>/dev/null; wait", f"echo; echo '{END}'"]) + "\n"


def waiting(text: str) -> str:
    """Return shell text that goes on only once a service that it starts listens."""
    return re.sub(r"^(sandbox serve &).*$", lambda found: f"{found[1]}\n{UNTIL_IT_LISTENS}", text, flags=re.MULTILINE)


def followed(block: Block, files: str) -> list[str]:
    """Return the lines of shell that follow a block."""
    if block.language == "sh" and "save as" not in block.marks:
        return [waiting(block.text)]
    file = f"{files}/{block.line}{ENDINGS.get(block.language, '')}"
    if name := block.marks.get("save as"):
        # The shell's own ~ counts.
        return [f'mkdir -p "$(dirname {name})"; cp {file} {name}']
    return [f"{block.marks.get('run with') or USUALLY[block.language]} {file}"]
