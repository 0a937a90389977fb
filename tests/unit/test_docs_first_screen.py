"""What a reader sees first: the pictures are current, the receipt is one, the index leads to every page."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec import convert

from sandbox.wire.given import Given
from sandbox.wire.run import ControlEvidence, Receipt
from tests.docs.pages import blocks_of, pages

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "scripts/pictures"))
NAMES = ["path.svg", "terminal.svg"]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_what_the_script_draws_and_the_readme_shows_it(name: str) -> None:
    text = (ROOT / "docs/pictures" / name).read_text()
    assert text == SCRIPT["pictures"]()[name], "run scripts/pictures"
    ElementTree.fromstring(text)
    assert f"](docs/pictures/{name})" in README


def test_the_path_has_room_for_what_it_shows() -> None:
    """Every box and text lies inside of the picture."""
    picture = ElementTree.fromstring((ROOT / "docs/pictures/path.svg").read_text())
    _, _, width, height = map(int, picture.attrib["viewBox"].split())
    boxes = [found.attrib for found in picture if found.tag.endswith("rect")]
    assert len(boxes) == 7
    for box in boxes:
        assert int(box.get("x", 0)) + int(box["width"]) <= width
        assert int(box.get("y", 0)) + int(box["height"]) <= height


def test_the_recording_shows_real_commands_in_order_and_takes_twenty_seconds() -> None:
    lines = SCRIPT["lines_of"](SCRIPT["CAST"].read_text())
    shown = "".join(re.sub(r"\x1b\[[0-9;]*m", "", line) + "\n" for _, line in lines)
    for command in SCRIPT["COMMANDS"]:
        assert f"$ {command}\n" in shown
    times = [when for when, _ in lines]
    assert times == sorted(times)
    assert times[-1] < SCRIPT["LENGTH_S"] == 20
    assert "policy_denied" in shown
    assert "Network is unreachable" in shown


def assert_part_of(model: type[Given], value: dict[str, Any]) -> None:
    assert value
    assert set(value) <= set(model.__struct_fields__)


def test_the_receipt_has_fields_of_the_model_in_its_order_and_valid_values() -> None:
    [block] = [block for block in blocks_of("README.md", README) if block.language == "json"]
    shown = json.loads(block.text)
    assert_part_of(Receipt, shown)
    assert list(shown) == [name for name in Receipt.__struct_fields__ if name in shown]
    statuses = set()
    for control in shown["controls"]:
        statuses.add(convert(control, ControlEvidence).status)
    assert statuses == {"proven", "fallback"}


def test_the_index_leads_to_every_page_once() -> None:
    index = ROOT / "docs/index.md"
    linked = re.findall(r"^- \[[^]]+\]\(([^)#]+)\)", index.read_text(), re.MULTILINE)
    wanted = {path.name for path in pages() if path.parent == index.parent and path != index}
    assert {name for name in linked if "/" not in name} == wanted
    assert len(linked) == len(set(linked))


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/index.md)" in README
