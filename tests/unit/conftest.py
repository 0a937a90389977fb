"""Settings of the property tests, no change of user, and no configuration of whoever tests.

Property tests leave no files behind, and no clock decides about them.
"""

from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("project", database=None, deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def stay_who_you_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep root's hand-over away from the process of the tests; tests/root has it in processes of their own."""
    for module in ("policy", "run", "session", "doctor"):
        monkeypatch.setattr(f"sandbox.cli.{module}.leave_root", lambda **_options: None)


@pytest.fixture(scope="session")
def no_configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place for configuration where there is none."""
    return tmp_path_factory.mktemp("config")


@pytest.fixture(autouse=True)
def have_no_configuration(monkeypatch: pytest.MonkeyPatch, no_configuration: Path) -> None:
    """Keep policies and settings of whoever runs the tests out of them."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(no_configuration))
