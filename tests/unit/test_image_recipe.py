"""What an image of one's own is asked for by: options and files, checked in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import InvalidRequest
from sandbox.image.base.layer import kept_of_own
from sandbox.image.base.recipe import Recipe, image_name, read_recipe


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "media.toml"
    path.touch(mode=0o600)
    return path


def test_a_file_and_options_go_together(file: Path) -> None:
    file.write_text('packages = ["git", "ffmpeg"]\nlocales = ["de_DE.UTF-8"]\npython = "3.11"\n')
    recipe = read_recipe(file).merged(Recipe(packages=("ffmpeg", "graphviz"), python="3.12")).checked()
    assert recipe.packages == ("ffmpeg", "git", "graphviz")
    assert (recipe.locales, recipe.python) == (("de_DE.UTF-8",), "3.12")


def test_the_order_makes_no_difference_and_everything_else_does() -> None:
    one = Recipe(packages=("git", "ffmpeg"), locales=("de_DE.UTF-8", "fr_FR.UTF-8")).checked()
    two = Recipe(packages=("ffmpeg", "git", "git"), locales=("fr_FR.UTF-8", "de_DE.UTF-8")).checked()
    assert one.digest("1") == two.digest("1")
    others = [one.digest("2"), *(one.merged(more).checked().digest("1") for more in (
        Recipe(packages=("jq",)), Recipe(locales=("it_IT",)), Recipe(python="3.11"), Recipe(suite="trixie"), Recipe(accept=("x1",))
    ))]  # fmt: skip # a table
    assert len({one.digest("1"), *others}) == 7


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('packages = ["git"]\npackage = ["x"]', 2, "packages"),
        ('packages = "git"', 1, "packages"),
        ("packages = [1]", 1, "packages"),
        ('\nlocales = ["de_DE.UTF-8"', 2, "TOML"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(file: Path, text: str, line: int, said: str) -> None:
    file.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        read_recipe(file)
    assert f"{file}:{line}" in caught.value.message
    assert said in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(suite="trixie"),
        Recipe(packages=("--option",)),
        Recipe(packages=("git ffmpeg",)),
        Recipe(packages=("a,b",)),
        Recipe(packages=("../x",)),
        Recipe(packages=("lib*",)),
        Recipe(packages=("?name(git)",)),
        Recipe(packages=("git/trixie",)),
        Recipe(packages=("git=1",)),
        Recipe(locales=("de_DE.UTF-8/../x",)),
        Recipe(locales=("-f",)),
        Recipe(python="3"),
        Recipe(python="3.11; x"),
        Recipe(packages=("git",), accept=("*",)),
    ],
)
def test_what_is_no_name_is_refused(recipe: Recipe) -> None:
    with pytest.raises(InvalidRequest):
        recipe.checked()


def test_a_name_is_one_of_this_host_and_never_ours() -> None:
    assert image_name("media") == image_name("localhost/media:latest") == "localhost/media:latest"
    assert image_name("media:2") == "localhost/media:2"
    for name in ("sandbox-python", "sandbox-environment:x", "Media", "a b", "-x", f"media@sha256:{'0' * 64}"):
        with pytest.raises(InvalidRequest):
            image_name(name)


KEPT = (
    "usr/bin/ffmpeg", "usr/lib/git-core/git-add", "etc/ImageMagick-6/policy.xml", "usr/share/fonts/truetype/x.ttf",
    "usr/share/proj/proj.db", "usr/lib/python3/dist-packages/osgeo/gdal.py", "usr/lib/locale/de_DE.utf8/LC_TIME",
    "etc/alternatives/convert", "var/lib/dict/x", "usr/lib/python3.11/tkinter/__init__.py", "etc/ld.so.cache", "lib/x",
)  # fmt: skip # a table
LEFT_OUT = (
    "usr/share/doc/x/copyright", "usr/share/man/man1/x.1", "etc/apt/apt.conf.d/proxy", "etc/resolv.conf", "etc/hostname",
    "etc/shadow", "etc/machine-id", "var/cache/apt/x.deb", "var/lib/dpkg/status", "root/.bashrc", "dev/null", "boot/x",
    "sandbox-build/made.json", "sandbox-build", "lib/systemd/system/x.service", "etc/cron.daily/x", "run/x", "tmp/x",
)  # fmt: skip # a table


def test_an_image_of_ones_own_keeps_what_its_packages_bring_and_nothing_of_the_build_host() -> None:
    assert [path for path in KEPT if not kept_of_own(path)] == []
    assert [path for path in LEFT_OUT if kept_of_own(path)] == []
