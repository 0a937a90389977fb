from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from sandbox.service.history.row import Often
from sandbox.service.server import seen_often

HASHED = (f"six==1.17.0 --hash=sha256:{'a' * 64}",)


def test_what_is_made_ready_has_the_hashes_that_its_environment_was_asked_for_with() -> None:
    records = {"e1": SimpleNamespace(requirements=HASHED)}
    kinds = [
        Often(policy="default", requirements="six==1.17.0", preload="six", environment="e1", runs=3),
        Often(policy="default", requirements="gone", preload="", environment="e2", runs=2),
        Often(policy="default", requirements="", preload="", environment="", runs=2),
        Often(policy="absent", requirements="", preload="", environment="", runs=2),
    ]
    state: Any = SimpleNamespace(
        runner=SimpleNamespace(environments=lambda: SimpleNamespace(store=SimpleNamespace(record=records.get))),
        history=SimpleNamespace(often=lambda *_, **__: kinds),
        config=SimpleNamespace(pool=SimpleNamespace(warm_seen=9)),
        policies=SimpleNamespace(names=lambda: ["default"]),
    )
    assert seen_often(cast("Any", state)) == [("default", HASHED, ("six",)), ("default", (), ())]
