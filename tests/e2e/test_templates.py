"""The templates that need libraries: they name them in their header, and give what their data holds."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import templates
from sandbox.environment.declared import Declared, parse_script
from tests.command import document, environment, left_behind, sandbox
from tests.e2e.website import KEY, ROWS, website

LIBRARIES = {
    "iot-pandas": {"pandas"},
    "vision": {"opencv-python-headless"},
    "ml": {"pandas", "scikit-learn"},
    "api": {"beautifulsoup4", "requests"},
}
UNREACHABLE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}


pytestmark = pytest.mark.host_only


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_behind() == []


def test_the_headers_name_the_libraries() -> None:
    found = {name: set((parse_script(templates.get(name).code) or Declared()).libraries) for name in templates.names()}
    assert {name: libraries for name, libraries in found.items() if libraries} == LIBRARIES


def test_iot_pandas_finds_the_open_door_and_the_hot_boiler() -> None:
    found = document("template", "run", "iot-pandas")
    assert found["outcome"] == "succeeded", found
    assert [(each["sensor"], each["temperature"]) for each in found["result"]["anomalies"]] == [
        ("cold-store", 11.4),
        ("boiler-room", 52.8),
    ]
    assert {name: row["count"] for name, row in found["result"]["sensors"].items()} == {
        "boiler-room": 94,
        "cold-store": 95,
    }
    (hourly,) = found["files"]
    assert len(base64.b64decode(hourly["content_base64"]).splitlines()) == 1 + 2 * 48
    assert [record["level"] for record in found["logs"]] == ["warning", "info"]


def test_vision_names_the_shapes_in_its_picture() -> None:
    found = document("template", "run", "vision")
    assert found["outcome"] == "succeeded", found
    assert [each["shape"] for each in found["result"]["objects"]] == ["rectangle", "round", "triangle", "rectangle"]
    (marked,) = found["files"]
    assert base64.b64decode(marked["content_base64"]).startswith(b"\xff\xd8\xff")


def test_vision_says_what_is_no_picture() -> None:
    found = document("template", "run", "vision", "--input", '{"image": "bm8gcGljdHVyZQ=="}')
    assert (found["outcome"], found["error"]["type"]) == ("failed", "ValueError")
    assert "not a picture" in found["error"]["message"]


def test_ml_learns_the_states_of_its_machines() -> None:
    found = document("run", "--with", "pandas", "--with", "scikit-learn", "template:ml")
    assert found["outcome"] == "succeeded", found
    assert found["result"]["accuracy"] > 0.9
    predicted = [each["prediction"] for each in found["result"]["predictions"]]
    assert predicted[:3] == ["normal", "worn bearing", "blocked"]
    (model,) = found["files"]
    assert model["name"] == "model.joblib"
    assert b"RandomForestClassifier" in zlib.decompress(base64.b64decode(model["content_base64"]))


@pytest.mark.embedded_only
def test_ml_runs_again_without_any_index() -> None:
    assert document("template", "run", "ml")["outcome"] == "succeeded"
    again = document("template", "run", "ml", env=environment(**UNREACHABLE))
    assert again["outcome"] == "succeeded", again
    other = sandbox("run", "--with", "pandas", "--with", "a-library-never-locked", "template:ml",
                    env=environment(**UNREACHABLE))  # fmt: skip # a command line
    assert other.returncode != 0, "the index was reached: the test proves nothing"


@pytest.mark.embedded_only
def test_ml_runs_on_a_machine_without_any_lock_wheel_or_record_and_again_without_an_index(tmp_path: Path) -> None:
    fresh = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    command = ("run", "--with", "pandas", "--with", "scikit-learn", "template:ml")
    unreachable = document(*command, env=environment(**fresh, **UNREACHABLE))
    assert unreachable["error"]["code"] == "build_failed", "something was there: the test proves nothing"
    found = document(*command, env=environment(**fresh))
    assert found["outcome"] == "succeeded", found
    kept = {
        path for path in tmp_path.rglob("*") if path.suffix in {".whl", ".tree"} or path.parent.name == "environments"
    }
    assert len([path for path in kept if path.suffix == ".whl"]) > 4
    assert [path.stem for path in kept if path.suffix == ".json"] == [found["receipt"]["environment"]]
    before = {path: path.stat().st_ctime_ns for path in kept if path.suffix == ".toml"}
    again = document(*command, env=environment(**fresh, **UNREACHABLE))
    assert again["outcome"] == "succeeded", again
    assert again["result"] == found["result"]
    assert again["receipt"]["environment"] == found["receipt"]["environment"]
    assert {path: path.stat().st_ctime_ns for path in before} == before, "it was built again"


def test_api_says_what_it_could_not_reach() -> None:
    found = document("template", "run", "api")
    assert found["outcome"] == "succeeded", found
    assert (found["result"]["records"], found["result"]["headings"]) == ([], [])
    assert [each["url"] for each in found["result"]["failures"]] == [
        "https://api.example.com/measurements",
        "https://www.example.com/news",
    ]
    assert "[network]" in found["logs"][-1]["message"]


def test_api_collects_from_hosts_that_the_policy_allows(tmp_path: Path) -> None:
    with website() as server:
        address = f"127.0.0.1:{server.port}"
        (tmp_path / "web.toml").write_text(
            f'extends = "default"\n[network]\nmode = "allowlist"\nallow = ["{address}"]\nallow_addresses ='
            ' ["127.0.0.1"]\n'
        )
        where = {"api_url": f"http://{address}/measurements", "page_url": f"http://{address}/news", "selector": "h2"}
        options: tuple[str | Path, ...] = ("--policy", tmp_path / "web.toml", "--input", json.dumps(where))
        without_key = document("template", "run", "api", *options)
        options += ("--secret", "API_TOKEN")
        with_key = document("template", "run", "api", *options, env=environment(API_TOKEN=KEY))
    assert [each["url"] for each in without_key["result"]["failures"]] == [where["api_url"]]
    assert "401" in without_key["result"]["failures"][0]["reason"]
    assert with_key["result"]["failures"] == []
    assert with_key["result"]["headings"] == ["First news", "Second  piece of news"]
    assert with_key["result"]["records"]["data"] == ROWS
