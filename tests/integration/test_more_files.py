"""Scripts of more than one file, and what they leave: `sandbox run` in a directory as its author has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command import document, sandbox

pytestmark = pytest.mark.podman

SPAWN = """
import multiprocessing, subprocess, sys
from plant import press

def scaled(n):
    log(f"working on {n}")
    return press.HOURS * n * payload

if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(payload)
        return
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        values = pool.map(scaled, range(3))
    again = subprocess.run([sys.executable, __file__, "again"], capture_output=True, text=True)
    return [values, again.stdout, "scaled" in open(__file__).read()]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "plant").mkdir()
    (tmp_path / "plant/__init__.py").write_text("")
    (tmp_path / "plant/press.py").write_text("import units\nHOURS = units.TWO\n")
    (tmp_path / "units.py").write_text("TWO = 2\n")
    (tmp_path / "script.py").write_text(SPAWN)
    return tmp_path


CELLS = 'extends = "default"\n[isolation]\nper_run = "cell"\n'


@pytest.mark.parametrize("policy", ["default", "cells.toml"])
def test_a_script_with_modules_beside_it_and_processes_of_its_own(project: Path, policy: str) -> None:
    (project / "cells.toml").write_text(CELLS)
    named = policy if policy == "default" else str(project / policy)
    found = document("run", project / "script.py", "--input", "5", "--policy", named)
    assert found["result"] == [[0, 10, 20], "5\n", True], found
    assert sorted(record["message"] for record in found["logs"]) == [f"working on {n}" for n in range(3)]


def test_what_goes_along_is_named_and_can_be_left_out(project: Path) -> None:
    answer = sandbox("run", project / "script.py", "--input", "1")
    assert "sandbox: sent along with script.py: plant/ (2 files), units.py (--no-local: none)\n" in answer.stderr
    refused = sandbox("run", project / "script.py", "--input", "1", "--no-local")
    assert refused.returncode != 0
    assert "No module named 'plant'" in refused.stderr
    assert "sent along" not in sandbox("run", project / "script.py", "--input", "1", "--quiet").stderr


def test_a_directory_with_a_main_module_runs(project: Path) -> None:
    (project / "script.py").rename(project / "__main__.py")
    found = document("run", project, "--input", "5")
    assert found["result"] == [[0, 10, 20], "5\n", True]
    answer = sandbox("run", project / "plant")
    assert answer.returncode == 2
    assert "a directory without a __main__.py" in answer.stderr


def test_files_lie_below_directories_where_they_are_sent_so(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "script.py").write_text("result = [open('in/a/data.csv').read(), open('data.csv').read()]")
    data = tmp_path / "data.csv"
    found = document("run", tmp_path / "script.py", "--file", f"in/a/data.csv={data}", "--file", data)
    assert found["result"] == ["1,2", "1,2"]
    refused = sandbox("run", tmp_path / "script.py", "--file", f"../data.csv={data}")
    assert refused.returncode == 2
    assert "has a part that must not be empty, '.' or '..'" in refused.stderr


def test_what_a_program_leaves_is_handed_out_under_safe_names(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os\nos.mkdir('out')\nopen('out/chart.png', 'w').write('x')\nopen('Makefile', 'w').write('y')\n"
        "os.symlink('/etc/passwd', 'passwd.txt')\nresult = 1"
    )
    target = tmp_path / "new"
    answer = sandbox("run", tmp_path / "script.py", "--save-new", target)
    assert answer.returncode == 0
    assert sorted(os.listdir(target)) == ["out_chart.png", "saved-Makefile.saved"]
    assert "Makefile was saved as saved-Makefile.saved" in answer.stderr
    both = sandbox("run", tmp_path / "script.py", "--save-new", target, "--save-files", target)
    assert both.returncode == 2
    assert "give --save-new alone" in both.stderr


def test_a_working_directory_without_room_for_the_script_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text('extends = "default"\n[filesystem]\napp_mib = 1\n')
    (tmp_path / "fill").write_bytes(b"x" * (1 << 20))
    (tmp_path / "script.py").write_text("result = 1")
    found = document("run", tmp_path / "script.py", "--policy", tmp_path / "small.toml", "--file", tmp_path / "fill")
    assert found["result"] == 1
    assert found["warnings"] == ["the script does not lie in /app: No space left on device"]


def test_a_script_that_would_start_processes_for_ever_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing\ndef f(n): return n\nwith multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "    result = pool.map(f, [1])\n"
    )
    found = document("run", tmp_path / "script.py")
    assert found["outcome"] == "failed"
    assert "if __name__ == '__main__':" in found["error"]["message"]
    assert found["explanation"].startswith("the program raised RuntimeError at line 3")
