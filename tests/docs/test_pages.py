"""Every command of every page, as an ordinary user in a fresh home on a fresh minimal root of each release."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.docs.fresh_root import HOME, FreshRoot, fresh_root
from tests.docs.pages import END, ENDINGS, ROOT, Block, blocks_of, pages, script

RELEASES = ("bookworm", "trixie")
PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]
LAST = "afterwards"  # what the pages say to do last
ROOTS = "root's installation"
ORDER = (*PAGES, LAST, ROOTS)
LEFT_OUT = (".git", "build", "__pycache__", ".*_cache", ".hypothesis", "node_modules", ".venv")
CHECKOUT = "podman-sandbox-runner"
RESULTS = ROOT / "build/test-results/docs"
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Followed:
    """How it went: what was printed, and for each command that failed its status, block and text."""

    failed: list[str]
    output: str
    took_s: float


def blocks(page: str) -> list[Block]:
    return [block for block in blocks_of(page, (ROOT / page).read_text()) if block.followed]


def follow(root: FreshRoot, name: str, wanted: list[Block]) -> Followed:
    """Follow blocks in a new copy of the checkout. What was printed stays in the results of the tests."""
    began = time.monotonic()
    place = name.replace("/", "-").removesuffix(".md")
    root.take(root.path / HOME / CHECKOUT, place)
    files = f"/srv/{place}"
    for block in wanted:
        root.write(f"{files.lstrip('/')}/{block.line}{ENDINGS.get(block.language, '')}", block.text)
    root.write(f"srv/{place}.sh", script(wanted, files))
    root.write(f"srv/{place}.failed", "")
    root.call("chmod", "0666", f"/srv/{place}.failed")
    answer = root.login(f"cd ~/{place} && bash /srv/{place}.sh 9>/srv/{place}.failed </dev/null", timeout_s=TIMEOUT_S)
    return told(root, place, answer.stdout, began)


def told(root: FreshRoot, place: str, output: str, began: float) -> Followed:
    """Return how it went."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{root.release}-{place}.txt").write_text(output)
    failed = (root.path / f"srv/{place}.failed").read_text().splitlines()
    if not output.endswith(f"{END}\n"):
        failed.append("it broke off before the end")
    return Followed(failed=failed, output=output, took_s=time.monotonic() - began)


# Where an ordinary user has no session, and none of the variables of one: as after `su -`.
AS_ROOT = """
cd /srv/checkout
scripts/quickstart
sandbox serve &
for _ in $(seq 200); do [ ! -S "$(sandbox config socket)" ] || break; sleep 0.1; done
sandbox run --input 1 template:environment --quiet
su - reader -c 'rm -rf .local/share/containers .config/containers; sudo rm -rf /run/user/$(id -u)'
su - reader -c 'sandbox config socket' | grep /tmp/podman-sandbox-runner-
su - reader -c 'sandbox image bootstrap && sandbox doctor && sandbox template run simple'
su - reader -c 'sandbox uninstall --dry-run && sandbox uninstall --yes' | grep 'stays: the program in /opt'
test -x /usr/local/bin/sandbox
[ ! -e "/tmp/podman-sandbox-runner-$(id -u reader)" ]
sandbox uninstall --dry-run
id sandbox
sandbox uninstall --yes
for path in /opt/podman-sandbox-runner /usr/local/bin/sandbox /var/lib/sandbox ; do [ ! -e "$path" ]; done
if grep -H ^sandbox: /etc/subuid /etc/subgid /etc/passwd; then false; fi
if grep -lzs '^HOME=/var/lib/sandbox' /proc/[0-9]*/environ; then false; fi
"""


def install_as_root(root: FreshRoot) -> Followed:
    """Install as root where only root's home is, use that as another user, too, and take it away."""
    began = time.monotonic()
    root.call("cp", "-r", f"/{HOME}/{CHECKOUT}", "/srv/checkout")
    root.call("chown", "-R", "root:", "/srv/checkout")
    block = Block(page=ROOTS, line=0, language="sh", text=AS_ROOT, marks={})
    root.write("srv/root.sh", script([block], "/srv"))
    answer = root.call("bash", "-c", "bash /srv/root.sh 9>/srv/root.failed", timeout_s=TIMEOUT_S, check=False)
    return told(root, "root", answer.stdout, began)


def follow_all(release: str, found: dict[tuple[str, str], Future[Followed]]) -> None:
    """Follow every page in a root of its own, in order."""
    try:
        with fresh_root(release) as root:
            root.take(ROOT, CHECKOUT, leave_out=LEFT_OUT)
            for page in PAGES:
                found[release, page].set_result(
                    follow(root, page, [block for block in blocks(page) if "run last" not in block.marks])
                )
            last = [block for page in PAGES for block in blocks(page) if "run last" in block.marks]
            found[release, LAST].set_result(follow(root, LAST, last))
            found[release, ROOTS].set_result(install_as_root(root))
    except BaseException as error:  # noqa: BLE001 - the tests that wait for the rest fail with it
        for page in ORDER:
            if not found[release, page].done():
                found[release, page].set_exception(error)


@pytest.fixture(scope="session")
def followed(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Followed]]]:
    """Both releases at the same time, each in its own root."""
    assert os.geteuid() == 0, "this tier runs as root: scripts/test as root includes it"
    asked = {item.callspec.params["release"] for item in request.session.items if hasattr(item, "callspec")}
    found: dict[tuple[str, str], Future[Followed]] = {(release, page): Future() for release in asked for page in ORDER}
    with ThreadPoolExecutor(len(asked)) as threads:
        for release in sorted(asked):
            threads.submit(follow_all, release, found)
        yield found


@pytest.mark.parametrize("page", ORDER)
@pytest.mark.parametrize("release", RELEASES)
def test_every_command_of_the_page_succeeds(
    release: str, page: str, followed: dict[tuple[str, str], Future[Followed]], capsys: pytest.CaptureFixture[str]
) -> None:
    result = followed[release, page].result()
    with capsys.disabled():
        print(f"\n{release} {page}: {result.took_s:.0f} s", flush=True)
    assert not result.failed, "\n".join([*result.failed, result.output[-20_000:]])


def test_what_is_not_run_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """Listed here, so that it stays short."""
    left_out = [
        block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text()) if "not run" in block.marks
    ]
    with capsys.disabled():
        for block in left_out:
            print(f"\nnot run: {block.name}: {block.marks['not run']}", end="")
    assert all(block.marks["not run"] for block in left_out)
