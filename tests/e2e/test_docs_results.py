"""What a page says that a program gives is what it gives."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.command import sandbox
from tests.docs.pages import ROOT, USUALLY, Block, blocks_of, pages

pytestmark = pytest.mark.host_only

ALL = [list(blocks_of(page.relative_to(ROOT).as_posix(), page.read_text())) for page in pages()]
SHOWN = [pair for blocks in ALL for pair in pairwise(blocks) if "the result" in pair[1].marks]


def test_pages_show_results() -> None:
    assert len(SHOWN) >= 4
    assert sum("the result" in block.marks for blocks in ALL for block in blocks) == len(SHOWN)


@pytest.mark.parametrize(("program", "result"), SHOWN, ids=lambda block: block.name)
def test_a_program_gives_what_its_page_says(program: Block, result: Block, tmp_path: Path) -> None:
    assert (program.language, result.language) == ("python", "json")
    (tmp_path / "program.py").write_text(program.text)
    _, *arguments = shlex.split(program.marks.get("run with") or USUALLY["python"])
    answer = sandbox(*arguments, tmp_path / "program.py")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == json.loads(result.text)
