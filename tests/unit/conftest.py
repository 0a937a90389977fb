"""Settings of the property tests (no files left behind, no clock decides), and no change of user in this process."""

import pytest
from hypothesis import settings

settings.register_profile("project", database=None, deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def stay_who_you_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep root's hand-over away from the process of the tests; tests/root has it in processes of their own."""
    for module in ("policy", "run", "session", "doctor"):
        monkeypatch.setattr(f"sandbox.cli.{module}.leave_root", lambda **_options: None)
