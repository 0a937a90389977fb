from __future__ import annotations

import contextlib
import site
import struct
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.environment.tree import Kind, TreeDecoder, TreeLimits, TreeRefused, encode_header
from sandbox.errors import BuildFailed

END = encode_header(Kind.END, "", 0)
ROOMY = TreeLimits(files_count=100, installed_bytes=1 << 20)
TRUSTING = TreeLimits(files_count=100, installed_bytes=1 << 20, allow_pth=True)
Entry = tuple[Kind, str, bytes]


class Listing:
    def __init__(self) -> None:
        self.entries: list[tuple[Kind, str, int]] = []
        self.bodies: dict[str, bytes] = {}

    def entry(self, kind: Kind, path: str, size_bytes: int) -> None:
        self.entries.append((kind, path, size_bytes))
        self.bodies[path] = b""

    def data(self, chunk: memoryview) -> None:
        self.bodies[self.entries[-1][1]] += chunk


def file(path: str, body: bytes = b"x") -> Entry:
    return (Kind.FILE, path, body)


def link(path: str, target: str) -> Entry:
    return (Kind.LINK, path, target.encode())


def directory(path: str) -> Entry:
    return (Kind.DIRECTORY, path, b"")


def stream(*entries: Entry) -> bytes:
    return b"".join(encode_header(kind, path, len(body)) + body for kind, path, body in entries) + END


def decode(data: bytes, limits: TreeLimits = ROOMY, sizes: Sequence[int] = (1 << 20,)) -> Listing:
    listing = Listing()
    decoder = TreeDecoder(limits, listing)
    start = 0
    for count in range(len(data) + 1):
        size = sizes[count % len(sizes)]
        if start >= len(data):
            break
        decoder.feed(data[start : start + size])
        start += size
    decoder.finish()
    return listing


def refusal(*entries: Entry, limits: TreeLimits = ROOMY) -> TreeRefused:
    with pytest.raises(TreeRefused) as caught:
        decode(stream(*entries), limits)
    return caught.value


def raw_header(kind: int, path: bytes, size: int) -> bytes:
    return struct.pack(">BIQ", kind, len(path), size) + path


GOOD = [
    directory("pandas"), file("pandas/__init__.py", b"import numpy\n"), (Kind.EXECUTABLE, "bin/f2py", b"#!/bin/sh\n"),
    link("pandas/lib.so", "../pandas.libs/lib.so.1"), file("pandas.libs/lib.so.1", b"\x7fELF"), file("empty", b""),
]  # fmt: skip # a table


def test_a_good_tree_comes_out_as_it_went_in() -> None:
    listing = decode(stream(*GOOD))
    assert listing.entries == [(kind, path, len(body)) for kind, path, body in GOOD]
    assert listing.bodies == {path: body for _, path, body in GOOD}


@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=8))
def test_how_a_stream_is_cut_makes_no_difference(sizes: list[int]) -> None:
    assert decode(stream(*GOOD), sizes=sizes).bodies == decode(stream(*GOOD)).bodies


def test_bodies_are_handed_on_without_being_copied() -> None:
    data = bytearray(stream(file("a", b"0123456789")))
    seen: list[memoryview] = []

    class Keeper(Listing):
        def data(self, chunk: memoryview) -> None:
            seen.append(chunk)

    TreeDecoder(ROOMY, Keeper()).feed(data)
    data[data.index(b"0123")] = ord("X")
    assert bytes(seen[0]) == b"X123456789"


@given(data=st.binary(max_size=200))
def test_noise_is_refused_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(TreeRefused):
        decode(data + b"\xff")


@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_a_body_or_a_name_but_never_what_may_be(data: st.DataObject) -> None:
    good = stream(*GOOD)
    place = data.draw(st.integers(0, len(good) - 1))
    changed = good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1 :]
    try:
        listing = decode(changed)
    except TreeRefused:
        return
    for kind, path, _ in listing.entries:
        assert kind in (Kind.DIRECTORY, Kind.FILE, Kind.EXECUTABLE, Kind.LINK)
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "straight"),
        ("../evil", "straight"),
        ("a/../../evil", "straight"),
        ("a//b", "straight"),
        ("./a", "straight"),
        ("a/", "straight"),
        ("a/.", "straight"),
        ("a\nb", "printed"),
        ("a\0b", "printed"),
        ("a\x1b[2Jb", "printed"),
        ("a\u202eb", "printed"),
        ("a" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("/".join("a" * 41), "40 directories"),
        (".wh.numpy", "delete"),
        ("pandas/.wh..wh..opq", "delete"),
    ],
)
def test_a_path_that_could_lead_elsewhere_is_refused_and_named_harmlessly(path: str, why: str) -> None:
    error = refusal(file(path))
    assert why in error.message
    assert error.message.isprintable()
    assert error.facts["path"].isascii()


@pytest.mark.parametrize("path", ["a" * 255, "é" * 127, "/".join("a" * 40), "a b/launcher (dev).xml", "..a/b..", ".wh"])
def test_a_path_just_within_the_rules_is_taken(path: str) -> None:
    assert path in decode(stream(file(path))).bodies


def test_a_path_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(TreeRefused, match="UTF-8"):
        decode(raw_header(2, b"caf\xe9", 0) + END)


def test_the_length_of_a_path_is_judged_before_the_path_is_waited_for() -> None:
    decode(stream(file("/".join(["a" * 255] * 4))))
    with pytest.raises(TreeRefused, match="1025 bytes"):
        TreeDecoder(ROOMY).feed(struct.pack(">BIQ", 2, 1025, 0))


@pytest.mark.parametrize("number", [5, 6, 7, 8, 128, 255])
def test_there_are_no_other_kinds_such_as_devices(number: int) -> None:
    with pytest.raises(TreeRefused, match=f"unknown kind {number}"):
        decode(raw_header(number, b"dev", 0) + END)


@pytest.mark.parametrize(
    "entries",
    [
        [file("a"), file("a")],
        [file("a"), directory("a")],
        [directory("a"), directory("a")],
        [file("a"), link("a", "b"), file("b")],
        [file("a/b"), file("a")],
        [file("a/b"), link("a", "c"), file("c")],
    ],
)
def test_a_second_entry_of_the_same_path_is_refused(entries: list[Entry]) -> None:
    assert "'a' comes twice" in refusal(*entries).message


def test_a_directory_may_be_named_after_what_it_holds_but_only_once() -> None:
    decode(stream(file("a/b/c"), directory("a/b"), directory("a")))
    assert "comes twice" in refusal(file("a/b/c"), directory("a/b"), directory("a/b")).message


@pytest.mark.parametrize("below", ["a/x", "a/x/y"])
@pytest.mark.parametrize(("above", "what"), [(file("a"), "file"), (link("a", "b"), "link")])
def test_nothing_lies_below_a_file_or_a_link_whichever_comes_first(above: Entry, what: str, below: str) -> None:
    target = file("b/x")
    assert f"lies below 'a', which is a {what}" in refusal(target, above, file(below)).message
    assert "'a' comes twice" in refusal(target, file(below), above).message
    decode(stream(target, above, file(f"c/{below}")))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("/etc/passwd", "straight"),
        ("../x", "leaves"),
        ("../../sub/x", "leaves"),
        ("sub/../../x", "leaves"),
        ("sub//x", "straight"),
        ("./x", "straight"),
        ("absent", "not in the tree"),
        ("sub/absent/../x", "not in the tree"),
        ("other", "another link"),
        ("other/../x", "another link"),
        ("dirlink/x", "another link"),
        ("me", "another link"),
        ("x/../x", "through a file"),
        ("x\n", "straight"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_link_leads_straight_to_something_in_the_tree(target: str, why: str, first: bool) -> None:
    rest = [file("x"), file("sub/x"), link("other", "x"), link("dirlink", "sub")]
    wrong = link("me", target)
    error = refusal(*([wrong, *rest] if first else [*rest, wrong]))
    assert why in error.message
    assert error.facts["path"] == "'me'"


@pytest.mark.parametrize("target", ["x", "sub", "sub/x", "../top/x", "sub/../x", ".."])
def test_a_link_within_the_tree_is_taken(target: str) -> None:
    decode(stream(link("top/me", target), file("top/x"), file("top/sub/x")))


@pytest.mark.parametrize("size", [0, 1025, 1 << 60])
def test_a_link_has_a_target_of_sensible_length(size: int) -> None:
    limits = TreeLimits(files_count=10, installed_bytes=1 << 62)
    with pytest.raises(TreeRefused, match="is a link to a path of"):
        TreeDecoder(limits).feed(encode_header(Kind.LINK, "a", size))


def test_a_directory_has_no_content() -> None:
    assert "content" in refusal((Kind.DIRECTORY, "a", b"x")).message


def test_sizes_are_judged_before_a_body_comes_and_all_together() -> None:
    limits = TreeLimits(files_count=10, installed_bytes=100)
    decode(stream(file("a", b"x" * 60), file("b", b"x" * 40)), limits)
    decoder = TreeDecoder(limits)
    decoder.feed(encode_header(Kind.FILE, "a", 60) + b"x" * 60)
    with pytest.raises(TreeRefused, match=r"'b' would exceed") as caught:
        decoder.feed(encode_header(Kind.FILE, "b", 41))
    assert "build.installed_mib" in caught.value.hint
    with pytest.raises(TreeRefused):
        TreeDecoder(limits).feed(encode_header(Kind.FILE, "huge", (1 << 64) - 1))


@pytest.mark.parametrize("entries", [[file("a"), file("b"), file("c")], [file("a/b/c")], [directory("a/b/c")]])
def test_files_links_and_directories_count_named_or_not(entries: list[Entry]) -> None:
    decode(stream(*entries), TreeLimits(files_count=3, installed_bytes=100))
    error = refusal(*entries, limits=TreeLimits(files_count=2, installed_bytes=100))
    assert "more than 2 files" in error.message
    assert "build.files_count" in error.hint


def test_the_memory_for_paths_is_bounded_whatever_the_policy_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.environment.tree.MAX_PATHS_CHARS", 1_000)
    decode(stream(file("a" * 200)))
    assert "1,000 characters" in refusal(*(file(f"{letter}" * 255) for letter in "abcd")).message


def test_a_stream_that_breaks_off_anywhere_is_refused() -> None:
    good = stream(*GOOD)
    for cut in range(1, len(good) + 1):
        with pytest.raises(TreeRefused, match="breaks off"):
            decode(good[:-cut])


@pytest.mark.parametrize("more", [b"\0", END, stream(file("b"))])
def test_a_stream_that_goes_on_after_its_end_is_refused(more: bytes) -> None:
    with pytest.raises(TreeRefused, match="after its end"):
        decode(stream(file("a")) + more)
    decoder = TreeDecoder(ROOMY)
    decoder.feed(stream(file("a")))
    with pytest.raises(TreeRefused, match="after its end"):
        decoder.feed(more)


@pytest.mark.parametrize("end", [raw_header(0, b"x", 0), raw_header(0, b"", 1)])
def test_the_end_has_neither_path_nor_body(end: bytes) -> None:
    with pytest.raises(TreeRefused):
        decode(end)


EXECUTED = [
    b"import os; os.system('x')", b"import\tos", b"# comment\nimport os", b"/dir\r\nimport os", b"a\rimport os",
    b"\xef\xbb\xbfimport os", b"a\x0bimport os", b"a\x0cimport os", b"a\x1cimport os", b"a\xc2\x85import os",
    b"a\x85import os", b"a\xe2\x80\xa8import os", b"\n\n\nimport os",
]  # fmt: skip # a table


@pytest.mark.parametrize("body", EXECUTED)
@pytest.mark.parametrize("sizes", [(1 << 20,), (1,)])
def test_pth_files_with_code_are_refused_unless_the_policy_allows_them(body: bytes, sizes: Sequence[int]) -> None:
    data = stream(file("evil.pth", body))
    with pytest.raises(TreeRefused, match=r"'evil\.pth' has lines that Python executes") as caught:
        decode(data, sizes=sizes)
    assert "build.allow_pth" in caught.value.hint
    assert "evil.pth" in decode(data, TRUSTING, sizes).bodies


PIECES = [
    b"import sys; sys.ran_by_pth = 1",
    b"import\tsys; sys.ran_by_pth = 1",
    b"#",
    b" ",
    b"x",
    b"\n",
    b"\r",
    b"\r\n",
    b"\x0b",
    b"\x0c",
    b"\x1c",
    b"\x85",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"\0",
]


@given(body=st.lists(st.sampled_from(PIECES), max_size=5).map(b"".join))
@example(body=PIECES[0])
def test_whatever_this_python_executes_of_a_pth_file_is_refused(body: bytes) -> None:
    before = list(sys.path)
    with tempfile.TemporaryDirectory() as place:
        Path(place, "evil.pth").write_bytes(body)
        with contextlib.suppress(UnicodeDecodeError), contextlib.redirect_stderr(None):
            site.addpackage(place, "evil.pth", set())
    sys.path[:] = before
    if sys.__dict__.pop("ran_by_pth", None):
        assert "executes" in refusal(file("evil.pth", body)).message
    else:
        assert body != PIECES[0], "the control: Python runs such lines"


@pytest.mark.parametrize(
    "entry",
    [
        file("good.pth", b"# import os\nsubdirectory\n"),
        file("good.pth", b"important\n"),
        file("good.pth", b""),
        file("package/evil.pth", b"import os"),
        file("evil.pth.txt", b"import os"),
        directory("empty.pth"),
    ],
)
def test_what_python_does_not_execute_is_taken(entry: Entry) -> None:
    decode(stream(entry))


@pytest.mark.parametrize(
    "entries",
    [
        [link("evil.pth", "data"), file("data", b"import os")],
        [file("evil.pth", b"#" * 70_000)],
        [(Kind.EXECUTABLE, "evil.pth", b"import os")],
        [file("evil.start", b"evil:main")],
        [file("sitecustomize.py")],
        [file("usercustomize.py")],
        [file("sitecustomize/__init__.py")],
        [file("sitecustomize.pyc")],
        [file("sitecustomize.cpython-311-x86_64-linux-gnu.so")],
        [file("sub.pth", b"sub\n"), file("sub/sitecustomize.py")],
        [file("sub/usercustomize/__init__.py"), file("sub.pth", b"# more\n./sub\n")],
    ],
)
def test_other_ways_to_run_at_every_start_are_refused_unless_the_policy_allows_them(entries: list[Entry]) -> None:
    error = refusal(*entries)
    assert "build.allow_pth" in error.hint
    decode(stream(*entries), TRUSTING)


def test_a_startup_module_that_python_does_not_look_for_is_taken() -> None:
    decode(stream(file("instrumentation/sitecustomize.py"), file("sitecustomize_x-1.dist-info/METADATA")))
    decode(stream(file("instrumentation/sitecustomize.py"), file("a.pth", b"# nothing\n\n")))


@pytest.mark.parametrize("path", ["harness.py", "harness/__init__.py", "harness.so", "harness"])
def test_the_runners_own_module_is_never_shadowed(path: str) -> None:
    assert "module of the sandbox's own" in refusal(file(path), limits=TRUSTING).message
    decode(stream(file(f"package/{path}"), file("harness_tools.py"), file("harness-1.0.dist-info/METADATA")))


def test_a_refusal_is_a_failed_build() -> None:
    assert issubclass(TreeRefused, BuildFailed)
    assert refusal(file("../x")).code == "build_failed"


def test_a_sink_may_end_the_decoding() -> None:
    class Full(Listing):
        def data(self, chunk: memoryview) -> None:
            raise OSError("disk full")

    decoder = TreeDecoder(ROOMY, Full())
    with pytest.raises(OSError, match="disk full"):
        decoder.feed(stream(file("a")))


def many(count: int) -> Iterable[Entry]:
    return (file(f"package/module_{number}.py", b"x") for number in range(count))


def test_the_work_grows_with_the_stream_and_not_faster() -> None:
    steps = []
    for count in (200, 2_000):
        calls = 0

        def count_calls(*_: object) -> None:
            nonlocal calls
            calls += 1

        decoder = TreeDecoder(TreeLimits(files_count=10_000, installed_bytes=1 << 20))
        data = stream(*many(count))
        sys.setprofile(count_calls)
        decoder.feed(data)
        sys.setprofile(None)
        decoder.finish()
        steps.append(calls)
    assert steps[1] < 11 * steps[0]
