from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.service.routes.prefer import Preferences, preferences


@pytest.mark.parametrize(
    ("headers", "respond_async", "wait_s"),
    [
        ([], False, None),
        (["respond-async"], True, None),
        (["Respond-Async"], True, None),
        (["respond-async, wait=100"], True, 100),
        (["handling=lenient", "WAIT = 7 , respond-async"], True, 7),
        (['foo; bar="a, respond-async; c"'], False, None),
        (['foo="a, \\", respond-async", wait="5"'], False, 5),
        (["respond-async; x=y"], True, None),
        (["wait=1, wait=2"], False, 1),
        ([",, respond-async ,"], True, None),
        (["respond-async=no"], False, None),
        (["wait=-1"], False, None),
        (["wait=1e9"], False, None),
        (["wait=\u0661"], False, None),
        (["wait=99999999999999999999"], False, None),
        (["x-respond-async, respond-asyncx"], False, None),
    ],
)
def test_preferences_are_read_as_the_rfc_has_them(headers: list[str], respond_async: bool, wait_s: int | None) -> None:
    assert preferences(headers) == Preferences(respond_async=respond_async, wait_s=wait_s)


@given(st.lists(st.text(max_size=50), max_size=4))
def test_any_header_is_read(headers: list[str]) -> None:
    preferences(headers)
