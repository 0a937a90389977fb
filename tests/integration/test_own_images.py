"""Images of one's own: built from the distribution's packages, named, used, listed, removed; the same each time.

A build takes a minute. The whole table of packages is tried with SANDBOX_ALL_IMAGES=1, a few of them otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sandbox import places
from sandbox.engine.podman import PodmanEngine
from sandbox.engine.protocol import Engine, ImageRecord
from sandbox.errors import BuildFailed
from sandbox.host.probe import probe
from sandbox.image.admission import admit
from sandbox.image.base import bootstrap as builder
from sandbox.image.base.recipe import Recipe
from tests.command import document, left_behind, sandbox
from tests.integration.service import served

pytestmark = pytest.mark.podman

NAME = f"localhost/own-{os.getpid()}"
WHOLE = os.environ.get("SANDBOX_ALL_IMAGES") == "1"


@dataclass(frozen=True)
class Tried:
    """A package, a command that uses it, and what the command prints."""

    package: str
    command: str
    printed: str


PPM = "printf 'P3 2 1 255 255 0 0 0 0 255 ' > /tmp/a.ppm; "
TRIED = (
    Tried("ffmpeg", "ffmpeg -v error -f lavfi -i testsrc=duration=1:size=32x32:rate=5 /tmp/a.mp4 && ffprobe -v error"
          " -show_entries stream=nb_frames -of csv=p=0 /tmp/a.mp4", "5"),
    Tried("git", "cd /tmp && git init -q r && cd r && git -c user.name=a -c user.email=b commit -q --allow-empty -m first"
          " && git log --format=%s", "first"),
    Tried("imagemagick", f"{PPM} convert /tmp/a.ppm -resize 200% /tmp/b.png && identify -format '%wx%h %m' /tmp/b.png",
          "4x2 PNG"),
    Tried("graphviz", "echo 'digraph { a -> b }' | dot -Tsvg | grep -c '<g id=.node'", "2"),
    Tried("poppler-utils", "printf '%%PDF-1.4\\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[3 0 R]"
          "/Count 1>>endobj 3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 72 72]>>endobj\\ntrailer<</Root 1 0 R>>' > /tmp/a.pdf;"
          " pdfinfo /tmp/a.pdf 2>/dev/null | awk '/^Pages/ {print $2}'", "1"),
    Tried("tesseract-ocr", "tesseract --list-langs | grep -x eng", "eng"),
    Tried("libgomp1", "python3 -c 'import ctypes.util; print(ctypes.util.find_library(\"gomp\"))'", "libgomp.so.1"),
    Tried("ghostscript", "gs -q -dNODISPLAY -dBATCH -c '/Helvetica findfont /FontName get =='", "/Helvetica"),
    Tried("gdal-bin", "printf 'x,y\\n1,2\\n' > /tmp/a.csv; ogrinfo -q /tmp/a.csv", "1: a (None)"),
)  # fmt: skip # a table
IN_SUITE = ("imagemagick", "poppler-utils")
RECIPE = Recipe(packages=IN_SUITE, locales=("de_DE.UTF-8", "tr_TR", "fr_FR.ISO-8859-1")).checked()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    runtime_dir = places.runtime_dir()
    engine = PodmanEngine(probe(runtime_dir).engine, runtime_dir=runtime_dir)
    yield engine
    engine.close()


def built(engine: Engine, recipe: Recipe, name: str, place: Path) -> ImageRecord:
    record = builder.build_own(engine, recipe, name=name, work_dir=place, progress=lambda sentence: None)
    assert list(place.iterdir()) == []
    return record


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRecord]:
    yield built(engine, RECIPE, f"{NAME}:latest", tmp_path_factory.mktemp("build"))
    engine.remove_image(f"{NAME}:latest")
    assert left_behind() == []


def in_image(program: str, *options: str) -> Any:
    answer = document("run", "--image", NAME, *options, "-", stdin=program)
    assert answer["outcome"] == "succeeded", answer
    return answer["result"]


def check(tried: Tried, image: str) -> None:
    program = f"result = run_command({tried.command!r}, timeout=20)"
    answer = document("run", "--image", image, "--timeout", "25", "-", stdin=program)
    assert answer["outcome"] == "succeeded", answer
    assert (answer["result"]["returncode"], answer["result"]["stdout"].strip()) == (0, tried.printed), answer["result"]


# The base image is made by the same steps, of fewer packages.
def test_the_same_recipe_and_packages_give_the_same_image(engine: Engine, image: ImageRecord, tmp_path: Path) -> None:
    again = built(engine, RECIPE, f"{NAME}-again:latest", tmp_path)
    engine.remove_image(f"{NAME}-again:latest")
    assert again.labels == image.labels, "the package archive changed between the two builds"
    assert (again.id, again.digest) == (image.id, image.digest)


@pytest.mark.parametrize("tried", [each for each in TRIED if each.package in IN_SUITE], ids=lambda each: each.package)
def test_a_package_works_in_an_image_of_several(image: ImageRecord, tried: Tried) -> None:
    check(tried, NAME)


if WHOLE:

    @pytest.mark.parametrize("tried", TRIED, ids=lambda each: each.package)
    def test_every_package_of_the_table_works_in_an_image_of_its_own(
        engine: Engine, tried: Tried, tmp_path: Path
    ) -> None:
        name = f"{NAME}-{tried.package}"
        built(engine, Recipe(packages=(tried.package,)).checked(), f"{name}:latest", tmp_path)
        try:
            check(tried, name)
        finally:
            engine.remove_image(f"{name}:latest")


LOCALES = """
import datetime, locale
def named(name, form):
    locale.setlocale(locale.LC_TIME, name)
    return datetime.date(2026, 3, 1).strftime(form)
result = [named("de_DE.UTF-8", "%B"), named("tr_TR.UTF-8", "%A"), named("fr_FR.ISO-8859-1", "%B")]
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
result += [locale.format_string("%.2f", 1234.5, grouping=True), sorted("zäaß", key=locale.strxfrm), locale.getpreferredencoding()]
"""


def test_the_locales_are_there(image: ImageRecord) -> None:
    assert in_image(LOCALES) == ["März", "Pazar", "mars", "1.234,50", ["a", "ä", "ß", "z"], "UTF-8"]


def test_what_the_base_image_has_is_there_too(image: ImageRecord) -> None:
    program = """
import ctypes.util, socket, ssl, sqlite3, zoneinfo
result = [socket.gethostbyname(socket.gethostname()), socket.getservbyname("https"), ctypes.util.find_library("c"),
    len(ssl.create_default_context().get_ca_certs()) > 50, run_command("python --version")["returncode"],
    zoneinfo.ZoneInfo("Asia/Tokyo").key]
"""
    assert in_image(program) == ["127.0.0.1", 443, "libc.so.6", True, 0, "Asia/Tokyo"]


def test_libraries_are_installed_on_it(image: ImageRecord) -> None:
    assert in_image("import six; result = six.PY3", "--with", "six") is True


def test_it_is_admitted_listed_and_says_what_it_is_made_of(engine: Engine, image: ImageRecord, tmp_path: Path) -> None:
    admitted = admit(engine, image, cache_dir=tmp_path)
    assert admitted.findings == ()
    assert json.loads(image.labels[builder.LABEL_ASKED]) == {
        "packages": list(RECIPE.packages), "locales": list(RECIPE.locales)
    }  # fmt: skip # a table
    assert f"{NAME}:latest" in sandbox("image", "list").stdout
    assert "poppler-utils" in sandbox("image", "check", NAME).stdout


def test_asked_for_again_it_is_there_and_a_damaged_name_is_not(image: ImageRecord) -> None:
    options = [word for name in RECIPE.packages for word in ("--package", name)]
    options += [word for name in RECIPE.locales for word in ("--locale", name)]
    answer = sandbox("image", "build", NAME, *options)
    assert "is here already" in answer.stdout, answer
    assert sandbox("image", "build", "sandbox-python", *options).returncode == 2
    assert sandbox("image", "build", NAME).returncode == 2


def test_a_policy_and_the_service_use_it(image: ImageRecord, tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    for name, allowed in (("media", NAME), ("other", "localhost/other")):
        (tmp_path / f"policies/{name}.toml").write_text(
            f'extends = "default"\n[images]\ndefault = "{allowed}:latest"\nallow = ["{allowed}:*"]\n'
        )
    program = "result = run_command('pdfinfo -v')['returncode']"
    with served(tmp_path) as service, service.client() as client:
        assert client.run(program, policy="media").value == 0
        assert client.run(program, image=NAME).value == 0
        with pytest.raises(Exception, match="image"):
            client.run(program, policy="other", image=NAME)


REFUSED = {
    "a package whose script can't be replaced": (Recipe(packages=("xml-core",)), "xml-core needs its", "--accept"),
    "a package that does not exist": (Recipe(packages=("surely-not-a-package",)), "surely-not-a-package", "apt-cache search"),
    "a version of Python that the release lacks": (Recipe(python="3.99"), "Python 3.99", "--suite"),
}  # fmt: skip # a table


@pytest.mark.parametrize(("recipe", "said", "advice"), REFUSED.values(), ids=REFUSED)
def test_what_can_t_be_made_is_refused_in_words(
    engine: Engine, tmp_path: Path, recipe: Recipe, said: str, advice: str
) -> None:
    with pytest.raises(BuildFailed) as caught:
        built(engine, recipe.checked(), f"{NAME}-refused:latest", tmp_path)
    assert said in caught.value.message
    assert advice in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    assert f"{NAME}-refused:latest" not in [name for record in engine.images() for name in record.names]
