"""Well-known packages that bring start-up files, or take calls for granted, from the index and for real."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import document, sandbox

pytestmark = pytest.mark.host_only

CASES = {
    "distutils, before setuptools": (
        ["setuptools"],
        "from distutils.util import strtobool\nfrom distutils.core import Extension\nresult = bool(strtobool('yes'))",
    ),
    "distutils in a child": (
        ["setuptools"],
        "import subprocess, sys\nresult = subprocess.run([sys.executable, '-c', 'import distutils.core']).returncode == 0",
    ),
    "pkg_resources": (
        ["setuptools<81"],
        "import pkg_resources\nresult = pkg_resources.parse_version('1.10') > pkg_resources.parse_version('1.9')",
    ),
    "a namespace": (["Paste==3.5.2"], "import paste.httpheaders\nresult = len(paste.__path__) == 1"),
    "on request": (["coloredlogs"], "import coloredlogs\ncoloredlogs.install()\nresult = True"),
    "psutil": (
        ["psutil"],
        "import psutil\nown = psutil.Process()\nown.cpu_affinity([0])\nown.ionice(psutil.IOPRIO_CLASS_IDLE)\nresult = 'ionice' in own.as_dict()",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_installed_and_works(tmp_path: Path, name: str) -> None:
    libraries, code = CASES[name]
    script = tmp_path / "script.py"
    script.write_text(code)
    answer = document("run", script, *(word for library in libraries for word in ("--with", library)))
    assert answer.get("result") is True, answer


def test_the_record_of_an_environment_names_what_was_left_out(tmp_path: Path) -> None:
    built = sandbox("env", "build", "--with", "coloredlogs")
    assert built.returncode == 0, built.stderr
    shown = sandbox("env", "show", built.stdout.split()[0])
    assert "left out" in shown.stdout
    assert "coloredlogs.pth" in shown.stdout
    record = document("env", "show", built.stdout.split()[0])
    assert [one.partition(",")[0] for one in record["left_out"]] == ["coloredlogs.pth"]
