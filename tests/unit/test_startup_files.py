"""Start-up files of well-known packages are left out, by their content; any other is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.environment.startup_files import DISTUTILS, LEFT_OUT, what_is_lost
from sandbox.environment.tree import TreeDecoder, TreeLimits, TreeRefused
from tests.unit.test_environment_image import file, image_of, layers_of, members, stored

# As published; the names of namespaces are others in each package.
DISTUTILS_PTH = (
    "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local';"
    " enabled and __import__('_distutils_hack').add_shim(); \n"
)
COLOREDLOGS = (
    'import os; exec(\'try: __import__("coloredlogs").auto_install() if os.environ.get("COLOREDLOGS_AUTO_INSTALL") else'
    " None\\nexcept ImportError: pass')\n"
)
HUNTER = "import hunter; hunter._embed_via_environment()\n"


def namespace(*names: str) -> str:
    """Return the line that setuptools wrote for a namespace."""
    full = ".".join(names)
    line = (
        f"import sys, types, os;has_mfs = sys.version_info > (3, 5);p = os.path.join(sys._getframe(1).f_locals['sitedir'],"
        f" *{names!r});importlib = has_mfs and __import__('importlib.util');has_mfs and"
        f" __import__('importlib.machinery');m = has_mfs and sys.modules.setdefault({full!r},"
        f" importlib.util.module_from_spec(importlib.machinery.PathFinder.find_spec({full!r}, [os.path.dirname(p)])));m = m"
        f" or sys.modules.setdefault({full!r}, types.ModuleType({full!r}));mp = (m or []) and"
        " m.__dict__.setdefault('__path__',[]);(p not in mp) and mp.append(p)"
    )
    if len(names) > 1:
        line += f";m and setattr(sys.modules[{'.'.join(names[:-1])!r}], {names[-1]!r}, m)"
    return line + "\n"


KNOWN = {
    "distutils-precedence.pth": DISTUTILS_PTH,
    "coloredlogs.pth": COLOREDLOGS,
    "hunter.pth": HUNTER,
    "matplotlib-3.7.1-py3.11-nspkg.pth": namespace("mpl_toolkits"),
    "google_cloud_storage-2.7.0-py3.9-nspkg.pth": namespace("google") * 2 + namespace("google", "cloud"),
    "zope.interface-5.0-nspkg.pth": namespace("zope"),
    "three-nspkg.pth": namespace("a", "b", "c"),
}


def accepted(name: str, content: bytes) -> None:
    decoder = TreeDecoder(TreeLimits(files_count=10, installed_bytes=1 << 20))
    kind, path, body = file(name, content)
    from sandbox.environment.tree import Kind, encode_header

    decoder.feed(encode_header(kind, path, len(body)) + body + encode_header(Kind.END, "", 0))
    decoder.finish()


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_one_is_accepted_and_in_the_image_under_a_name_that_python_does_not_look_for(
    tmp_path: Path, name: str
) -> None:
    content = KNOWN[name].encode()
    accepted(name, content)
    image = image_of([stored(tmp_path / "p.tree", file("p.py"), file(name, content))], tmp_path / "i.tar")
    names = {path.removeprefix("opt/environment/") for layer in layers_of(image) for path in members(layer)}
    assert f"{name}{LEFT_OUT}" in names
    assert not [path for path in names if path.endswith(".pth")]
    assert [one.partition(",")[0] for one in image.left_out] == [name]


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    "changed",
    [
        lambda text: text + "import os; os.system('id')\n",
        lambda text: "import evil\n" + text,
        lambda text: text.rstrip("\n") + "; import evil\n",
        lambda text: text.replace("import ", "import evil, ", 1),
        lambda text: text + "elsewhere\n",
        lambda text: text.replace("\n", "\x0cimport evil\n"),
        lambda text: text + "# \xe9\n",
    ],
)
def test_one_of_the_same_name_and_other_content_is_refused(name: str, changed: object) -> None:
    content = changed(KNOWN[name]).encode()  # type: ignore[operator]
    with pytest.raises(TreeRefused, match="executes at every start"):
        accepted(name, content)


@pytest.mark.parametrize(
    "names", ["'a', evil()", "'a',), *(evil(),", "'a' 'b'", "'a');evil();(", "'__import__(\"evil\")'", "'a.b'"]
)
def test_the_names_of_a_namespace_are_names(names: str) -> None:
    assert what_is_lost(namespace("zope").replace("'zope',", f"{names},").encode()) is None
    assert what_is_lost(namespace("zope").encode()) is not None


def test_a_policy_that_trusts_start_up_files_has_them_run(tmp_path: Path) -> None:
    tree = stored(tmp_path / "p.tree", file("hunter.pth", HUNTER.encode()))
    image = image_of([tree], tmp_path / "i.tar", allow_pth=True)
    assert "opt/environment/hunter.pth" in members(layers_of(image)[-1])
    assert image.left_out == ()


def test_a_stored_tree_with_an_unknown_one_makes_no_image(tmp_path: Path) -> None:
    with pytest.raises(TreeRefused, match="executes at every start"):
        image_of([stored(tmp_path / "p.tree", file("x.pth", b"import x\n"))], tmp_path / "i.tar")


@pytest.mark.parametrize("taken", ["file", "directory"])
def test_the_name_under_which_one_is_kept_can_not_be_another_packages(taken: str, tmp_path: Path) -> None:
    inner = [file(f"hunter.pth{LEFT_OUT}/x", b"")] if taken == "directory" else [file(f"hunter.pth{LEFT_OUT}", b"x")]
    tree = stored(tmp_path / "p.tree", file("hunter.pth", HUNTER.encode()), *inner)
    with pytest.raises(TreeRefused, match=r"is where 'hunter.pth' would be kept"):
        image_of([tree], tmp_path / "i.tar")


def test_an_image_made_of_what_another_has_is_the_same(tmp_path: Path) -> None:
    """What was pulled is composed once more, and compared."""
    first = image_of(
        [stored(tmp_path / "setuptools.tree", file("distutils-precedence.pth", DISTUTILS_PTH.encode()))],
        tmp_path / "1.tar",
    )
    entries = [
        file(f"distutils-precedence.pth{LEFT_OUT}", DISTUTILS_PTH.encode()),
        file(*DISTUTILS),
    ]
    again = image_of([stored(tmp_path / "pulled.tree", *entries)], tmp_path / "2.tar")
    assert again.layers == first.layers
    assert again.left_out == first.left_out != ()


def test_an_import_of_distutils_is_answered_by_setuptools(tmp_path: Path) -> None:
    """On a Python that has none of its own, which a directory before all others stands for here."""
    path, content = DISTUTILS
    (tmp_path / "distutils").mkdir()
    (tmp_path / path).write_bytes(content)
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools/__init__.py").write_text(
        "import sys, types\nsys.modules['distutils'] = types.ModuleType('distutils')\n"
        "sys.modules['distutils.util'] = types.ModuleType('distutils.util')\nsys.modules['distutils'].util = sys.modules['distutils.util']\nsys.modules['distutils.util'].real = 1\n"
    )
    code = "from distutils import util; import distutils.util; print(distutils.util.real)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "1\n", done.stderr
