"""How pages become scripts for the tier `docs`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.docs.pages import END, blocks_of, pages, script

PAGE = """# Title

```sh
echo one
false
```

<!-- not run: needs a registry -->
```sh
exit 7
```

<!-- template: simple -->
<!-- save as: deep/mine.py -->
```python
result = 1
```

A sentence in between.

<!-- before:
touch here
-->
```sh
test -e here | cat
( exit 3 )
```

<!-- run with: cmp deep/mine.py -->
```python
result = 1
```

```text
not followed
```
"""


def test_blocks_have_their_marks_and_lines() -> None:
    found = list(blocks_of("page.md", PAGE))
    assert [(block.line, block.language, block.followed) for block in found] == [
        (4, "sh", True),
        (10, "sh", False),
        (16, "python", True),
        (25, "sh", True),
        (31, "python", True),
        (35, "text", False),
    ]
    assert found[1].marks == {"not run": "needs a registry"}
    assert found[2].marks == {"save as": "deep/mine.py"}
    assert found[3].marks == {"before": "touch here"}


def test_each_command_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    wanted = [block for block in blocks_of("page.md", PAGE) if block.followed]
    for block in wanted:
        (tmp_path / f"{block.line}.py").write_text(block.text)
    (tmp_path / "page.sh").write_text(script(wanted, str(tmp_path)))
    done = subprocess.run(
        "bash page.sh 9>failed", shell=True, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True
    )
    told = [line.split("\t") for line in (tmp_path / "failed").read_text().splitlines()]
    assert done.stdout.endswith(f"{END}\n")
    assert {(status, block) for status, block, _ in told} == {("1", "page.md:4"), ("3", "page.md:25")}


def test_every_block_of_a_page_says_what_it_is() -> None:
    known = {"sh", "python", "toml", "json", "text", "mermaid", "ini", "html", "js", "http"}
    for page in pages():
        for block in blocks_of(page.name, page.read_text()):
            assert block.language in known, f"{block.name}: a block without a language is not followed"
            assert block.marks.get("not run", "a reason"), f"{block.name}: not run, without a reason"


def test_a_block_that_breaks_the_script_off_is_noticed(tmp_path: Path) -> None:
    broken = [block for block in blocks_of("page's", "```sh\necho 'open\n```\n```sh\ntrue\n```\n") if block.followed]
    done = subprocess.run(
        ["bash", "-c", script(broken, "/")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    assert not done.stdout.endswith(f"{END}\n")
