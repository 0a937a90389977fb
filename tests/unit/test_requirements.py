from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.environment.declared import Declared, check_python, parse_pyproject, parse_script
from sandbox.environment.requirements import MAX_REQUIREMENTS, parse_libraries, parse_requirements_txt
from sandbox.errors import InvalidRequest

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("field", "requirements"),
    [
        ("", ()),
        ("  \n# only a comment\n,\n", ()),
        ("pandas", ("pandas",)),
        ("pandas>=1.3.0,<2.0.0", ("pandas<2.0.0,>=1.3.0",)),
        ("requests, numpy", ("numpy", "requests")),
        ("pandas>=1.3,<2, numpy", ("numpy", "pandas<2,>=1.3")),
        ("pandas >= 1.3 , < 2 ,numpy~=2.0,", ("numpy~=2.0", "pandas<2,>=1.3")),
        ("pandas>=1.3.0\r\nnumpy\r\n", ("numpy", "pandas>=1.3.0")),
        ("uvicorn[standard, Extra_B]>=0.20, httpx", ("httpx", "uvicorn[extra-b,standard]>=0.20")),
        ("pandas (>=1.3,<2), numpy", ("numpy", "pandas<2,>=1.3")),
        ('tomli; python_version < "3.11", numpy', ("numpy", 'tomli; python_version < "3.11"')),
        ('x; platform_machine in "a,b", y', ('x; platform_machine in "a,b"', "y")),
        ("Scikit_Learn  # the classifier\nPyYAML!=5.4", ("pyyaml!=5.4", "scikit-learn")),
        ("pandas\nPandas\nPANDAS", ("pandas",)),
        ("pandas<2\npandas>=1", ("pandas<2", "pandas>=1")),
        ("torch==2.1.0+cpu", ("torch==2.1.0+cpu",)),
    ],
)
def test_a_field_is_read_as_people_write_it(field: str, requirements: tuple[str, ...]) -> None:
    assert parse_libraries(field) == requirements


def test_the_canonical_form_stays_as_it_is() -> None:
    once = parse_libraries('pandas>=1.3,<2, uvicorn[standard], tomli; python_version < "3.11"')
    assert parse_libraries("\n".join(once)) == once


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("scikit learn", "scikit-learn"),
        ("pandas=1.5", "pandas==1.5"),
        ("pandas 1.5", "pandas==1.5"),
        ("pandas@1.5", "pandas==1.5"),
        ("pandas^1.5", "pandas~=1.5"),
        ("pandas=>1.5", "pandas>=1.5"),
        ("pandas>1 <2", "pandas>1,<2"),
        ("pandas, >=1.3", "pandas>=1.3"),
        ("pip install pandas", "pandas"),
        ("import pandas as pd", "pandas"),
        ("'pandas'", "pandas"),
        ("pandas==1.5;", "pandas==1.5"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(entry: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match=r"libraries, line 2: .*is not a requirement") as caught:
        parse_libraries(f"numpy\n{entry}")
    assert f"did you mean {meant}?" in caught.value.hint
    assert parse_libraries(meant)


def test_two_names_in_one_entry_are_told_how_to_be_two() -> None:
    for entry in ("requests numpy", "pip install requests numpy"):
        with pytest.raises(InvalidRequest) as caught:
            parse_libraries(entry)
        assert "requests, numpy" in caught.value.hint
        assert "requests-numpy" not in caught.value.hint, "a name that anybody may register"


@pytest.mark.parametrize(
    "entry",
    [
        "evil @ https://example.org/evil-1.0-py3-none-any.whl",
        "https://example.org/evil.whl",
        "./evil",
        "../evil",
        ".",
        "/tmp/evil",
        "~/evil",
        "evil-1.0-py3-none-any.whl",
        "evil-1.0.tar.gz",
        "git+https://example.org/evil.git",
        "git+ssh://git@example.org/evil",
        "evil @ git+https://example.org/evil",
        "evil @ file:///tmp/evil",
        "evil@https://example.org/evil.zip",
    ],
)
def test_what_would_go_around_the_index_is_refused(entry: str) -> None:
    for parse in (parse_libraries, parse_requirements_txt):
        with pytest.raises(InvalidRequest, match="is an address or a path") as caught:
            parse(entry)
        assert "index" in caught.value.hint


@pytest.mark.parametrize("entry", ["x @ https://user:s3cret@example.org/x.whl", "https://user:s3cret@example.org/x"])
def test_a_password_in_an_address_is_not_repeated(entry: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_libraries(entry)
    assert "example.org" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        "<2",
        "pandas>=",
        "pandas>=1.x.y",
        "pandas; bogus",
        "[extra]",
        "-",
        "pandas[",
        "a;b",
        "p\u0430ndas",
        "pandas\u202e",
        "a==1==",
    ],
)
def test_what_is_no_requirement_is_refused_in_words(entry: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_libraries(entry)
    assert caught.value.hint
    assert "\u202e" not in str(caught.value)


@pytest.mark.parametrize("char", ["\0", "\x1b", "\x07", "\x85", "\u2028", "\x7f", "\x0b"])
def test_control_characters_are_refused(char: str) -> None:
    for parse in (parse_libraries, parse_requirements_txt, parse_pyproject):
        with pytest.raises(InvalidRequest, match="line 2: has the control character") as caught:
            parse(f"numpy\npandas{char}")
        assert char not in str(caught.value)


def test_size_and_number_are_bounded() -> None:
    many = "\n".join(f"library-{number}" for number in range(MAX_REQUIREMENTS))
    assert len(parse_libraries(many)) == MAX_REQUIREMENTS
    for text, reason in (
        (f"{many}\none-more", "more than 1000"),
        ("x" * 201, "200 characters"),
        ("#" * 1_100_000, "KiB"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            parse_libraries(text)


def test_a_field_takes_the_hashes_of_a_file() -> None:
    lines = (
        f"numpy==1.26.4 --hash=sha256:{B} --hash=sha256:{A.upper()}, six\ntomli==2.0.1; python_version < '3.11'"
        f" --hash=sha256:{A}"
    )
    once = parse_libraries(lines)
    assert once == (
        f"numpy==1.26.4 --hash=sha256:{A} --hash=sha256:{B}",
        "six",
        f'tomli==2.0.1; python_version < "3.11" --hash=sha256:{A}',
    )
    assert parse_libraries("\n".join(once)) == parse_requirements_txt("\n".join(once)) == once


@pytest.mark.parametrize(
    "option", ["--hash=md5:0123", f"--hash=sha256:{A}0", "--hash=", "--index-url=https://example.org/simple"]
)
def test_a_field_takes_no_other_option(option: str) -> None:
    with pytest.raises(InvalidRequest, match="libraries, line 1: the option"):
        parse_libraries(f"six {option}")


def test_required_hashes_are_required_of_every_line() -> None:
    hashed = f"six==1.17.0 --hash=sha256:{A}\n"
    assert parse_requirements_txt(f"--require-hashes\n{hashed}") == parse_requirements_txt(hashed)
    with pytest.raises(InvalidRequest, match=r"needs\.txt:1: --require-hashes is asked for, and numpy has no hash"):
        parse_requirements_txt(f"--require-hashes\n{hashed}numpy\n", name="needs.txt")


@pytest.mark.parametrize("line", ["-r other.txt", "-rother.txt", "--requirement other.txt", "--requirement=other.txt"])
def test_another_file_is_included_where_files_can_be_read(line: str) -> None:
    asked: list[str] = []

    def include(name: str) -> tuple[str, ...]:
        asked.append(name)
        return ("six",)

    assert parse_requirements_txt(f"numpy\n{line}\n", include=include) == ("numpy", "six")
    assert asked == ["other.txt"]


UV = (
    'sources = { six = { index = "own" } }',
    'exclude-newer = "2020-01-01"',
    '[[tool.uv.index]]\nurl = "https://own.test/simple"',
)


@pytest.mark.parametrize("choice", [*UV, "[tool.uv.sources]\nsix = {}", "[tool.uv.pip]\nno-index = true"])
def test_what_uv_is_told_about_sources_is_refused_and_not_passed_over(choice: str) -> None:
    text = f'[project]\ndependencies = ["six"]\n[tool.uv]\n{choice}\n'
    with pytest.raises(InvalidRequest, match=r"^pyproject\.toml:4: .*\[tool\.uv\] is not followed") as caught:
        parse_pyproject(text)
    assert "uv export" in caught.value.hint
    header = "".join(f"# {line}\n" for line in f'dependencies = ["six"]\n[tool.uv]\n{choice}'.split("\n"))
    with pytest.raises(InvalidRequest, match=r"^script:4: "):
        parse_script(f"# /// script\n{header}# ///\n")
    assert parse_pyproject('[project]\ndependencies = ["six"]\n[tool.uv]\npackage = false\n').libraries == ("six",)


@pytest.mark.parametrize("key", ["index-strategy", "no-binary-package", "some-later-choice"])
def test_what_uv_may_choose_files_by_is_refused_also_where_it_is_not_known(key: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^pyproject\.toml:4: {key} of \[tool\.uv\] is not followed"):
        parse_pyproject(f'[project]\ndependencies = ["six"]\n[tool.uv]\n{key} = "a"\n')


@pytest.mark.parametrize(("tool", "key"), [("poetry", "source"), ("pdm", "source"), ("pdm", "resolution")])
def test_what_other_tools_are_told_about_sources_is_refused(tool: str, key: str) -> None:
    table = f'[[tool.{tool}.{key}]]\nname = "own"\nurl = "https://own.test/simple"\n'
    with pytest.raises(InvalidRequest, match=rf"^pyproject\.toml:3: {key} of \[tool\.{tool}\]") as caught:
        parse_pyproject(f'[project]\ndependencies = ["six"]\n{table}')
    assert f"{tool} export" in caught.value.hint
    assert parse_pyproject('[project]\ndependencies = ["six"]\n[tool.ruff]\nsource = 1\n').libraries == ("six",)


PIPFILE = '[[source]]\nurl = "https://own.test/simple"\n\n[packages]\nsix = "*"\n'
CONDA = "# ours\nname: science\nchannels:\n  - conda-forge\ndependencies:\n  - six\n"


@pytest.mark.parametrize(
    ("name", "text", "tool", "hint"),
    [
        ("Pipfile", PIPFILE, "pipenv", "pipenv requirements >"),
        ("Pipfile.lock", "{}", "pipenv", "pipenv requirements >"),
        ("requirements.txt", "\n" + PIPFILE, "pipenv", "pipenv requirements >"),
        ("environment.yml", CONDA, "conda", "list the libraries"),
        ("env.yaml", CONDA, "conda", "list the libraries"),
        ("requirements.txt", CONDA, "conda", "list the libraries"),
        ("poetry.lock", "[[package]]\n", "Poetry", "poetry export"),
        ("uv.lock", "version = 1\n", "uv", "uv export"),
        ("pdm.lock", "[metadata]\n", "PDM", "pdm export"),
        ("pixi.toml", "[workspace]\n", "pixi", "list the libraries"),
        ("setup.py", "from setuptools import setup\n", "setuptools", "list the libraries"),
        ("setup.cfg", "[options]\n", "setuptools", "list the libraries"),
    ],
)
def test_a_list_of_another_tool_is_refused_with_how_to_give_it(name: str, text: str, tool: str, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} is a file of {tool}, not a requirements.txt") as caught:
        parse_requirements_txt(text, name=name)
    assert hint in caught.value.hint


def test_names_that_only_resemble_those_of_other_tools_are_libraries() -> None:
    assert parse_requirements_txt("name\nchannels\n# dependencies:\n", name="Pipfile.txt") == ("channels", "name")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("dependancies", "did you mean dependencies?"),
        ("requires_python", "did you mean requires-python?"),
        ("run", "it may have"),
    ],
)
def test_what_nobody_reads_of_a_header_is_refused(key: str, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^script:2: the script's header has '{key}'") as caught:
        parse_script(f"#!/usr/bin/env -S uv run --script\n# /// script\n# {key} = ['six']\n# ///\n")
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    "line",
    [
        "#!/usr/bin/env -S uv run --with pandas --script",
        "#!/usr/bin/env -S uv run --index-url=https://own.test/simple -s",
        "#!/usr/bin/env -S uv run -p 3.12",
        "#!/usr/bin/uvx --from own tool",
        "#!/usr/bin/env -S pipx run --pip-args=--pre",
    ],
)
def test_options_of_a_first_line_are_refused(line: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^script:1: the option '-\S+' of the first line is not followed"):
        parse_script(f"{line}\n# /// script\n# dependencies = ['six']\n# ///\n")


@pytest.mark.parametrize(
    "line", ["#!/usr/bin/env python3", "#!/usr/bin/env -S uv run --script -q", "#!/usr/bin/env -S python3 -u"]
)
def test_a_first_line_that_chooses_no_files_is_taken(line: str) -> None:
    found = parse_script(f"{line}\n# /// script\n# dependencies = ['six']\n# ///\n")
    assert found is not None
    assert found.libraries == ("six",)


@given(st.text(alphabet=" \n\t,;#\\-@[]()<>=!~'\"/.:+abz019", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_libraries, parse_requirements_txt, parse_script):
        try:
            found = parse(text)
        except InvalidRequest:
            continue
        libraries = found.libraries if isinstance(found, Declared) else found
        assert libraries is None or parse_requirements_txt("\n".join(libraries)) == libraries


def test_a_requirements_file_is_read_as_pip_reads_it() -> None:
    text = (
        "\ufeff# what we need\n\npandas>=1.3,<2  # frames\r\n"
        f"numpy==1.26.4 \\\n    --hash=sha256:{B} \\\n    --hash=sha256:{A.upper()}\n"
        'tomli==2.0.1 ; python_version < "3.11"\nuvicorn[standard]\n'
    )
    assert parse_requirements_txt(text) == (
        f"numpy==1.26.4 --hash=sha256:{A} --hash=sha256:{B}",
        "pandas<2,>=1.3",
        'tomli==2.0.1; python_version < "3.11"',
        "uvicorn[standard]",
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("-r other.txt", "lines of that file"),
        ("-rother.txt", "lines of that file"),
        ("--requirement=other.txt", "lines of that file"),
        ("-c limits.txt", "behind its library"),
        ("-e .", "into the script"),
        ("--index-url https://example.org/simple", "configured"),
        ("-i https://example.org/simple", "configured"),
        ("--extra-index-url=https://example.org/simple", "configured"),
        ("-f ./wheels", "configured"),
        ("--trusted-host example.org", "configured"),
        ("--no-binary :all:", "allow_sdists"),
        ("--pre", "version"),
        ("--install-option=--prefix=/", "remove it"),
        ("pandas --index-url=https://example.org/simple", "configured"),
        ("pandas --global-option=x", "remove it"),
        ("pandas --hash=md5:0123", "sha256"),
        (f"pandas --hash=sha256:{A}0", "sha256"),
    ],
)
def test_options_of_a_requirements_file_are_refused_with_what_to_do(line: str, hint: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^needs\.txt:3: the option") as caught:
        parse_requirements_txt(f"numpy\n\n{line}\n", name="needs.txt")
    assert hint in caught.value.hint


def test_a_continued_line_is_named_by_where_it_begins() -> None:
    with pytest.raises(InvalidRequest, match=r"requirements\.txt:2: "):
        parse_requirements_txt("numpy\npandas \\\n  => 1.3\n")


def test_a_project_lists_its_dependencies() -> None:
    text = '[project]\nname = "x"\nrequires-python = ">=3.9"\ndependencies = [\n  "Pandas>=1.3",\n  "numpy",\n]\n'
    assert parse_pyproject(text) == (("numpy", "pandas>=1.3"), ">=3.9")
    assert parse_pyproject('[project]\nname = "x"\n') == ((), "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no table"),
        ('[tool.poetry]\nname = "x"\n', "has no table"),
        ('[project]\ndynamic = ["dependencies"]\n', "dynamic"),
        ('[project]\nname = "x"\ndependencies = "numpy"\n', r"pyproject\.toml:3: .*not a list"),
        ('[project]\ndependencies = [\n "numpy",\n "pandas=1"]\n', r"pyproject\.toml:4: 'pandas=1' is not"),
        ('[project]\ndependencies = ["x @ file:///tmp/x"]\n', r"pyproject\.toml:2: .*address or a path"),
        ("[project]\nname = \n", r"pyproject\.toml:2: this is not valid TOML"),
        ('[project]\nrequires-python = "three"\n', r"pyproject\.toml:2: requires-python is not"),
        ('lock-version = "1.0"\n[[packages]]\nname = "x"\n', r"pyproject\.toml is a lock"),
        ("x = " + "[" * 1900 + "\n", "nested too deeply"),
        ("a" + ".a" * 5000 + " = 1\n", "2000 characters"),
        ("[a" + ".a" * 500 + "]\n", "200 characters"),
    ],
)
def test_a_project_that_does_not_say_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_pyproject(text)


@pytest.mark.parametrize(
    ("lists", "left_out"),
    [
        (
            '[tool.poetry.dependencies]\npython = "^3.11"\npandas = "^2"\n',
            r"3: pandas of \[tool\.poetry\.dependencies\]",
        ),
        ('[tool.pixi.dependencies]\npython = "3.11.*"\ngdal = "*"\n', r"3: gdal of \[tool\.pixi\.dependencies\]"),
        ('[tool.pixi.pypi-dependencies]\n"a\\u001b[31m" = "*"\n', r"3: a of \[tool\.pixi\.pypi-dependencies\]"),
    ],
)
def test_libraries_that_another_tool_alone_is_told_of_are_not_left_out_in_silence(lists: str, left_out: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^pyproject\.toml:{left_out} would be left out") as caught:
        parse_pyproject(f'[project]\ndependencies = ["NumPy>=1"]\n{lists}')
    assert caught.value.hint.startswith("list there what the code imports")
    # What says nothing more than [project] does is no reason.
    assert parse_pyproject(
        '[project]\ndependencies = ["NumPy>=1", "my_own[x]"]\n'
        '[tool.poetry.dependencies]\npython = "^3.11"\nnumpy = "1"\nMy-Own = "*"\n'
    ).libraries == ("my-own[x]", "numpy>=1")


SCRIPT = """#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11.2"
# dependencies = [
#   "pandas>=1.3,<2",
#
#   "numpy",  # arrays
# ]
# ///
result = payload
"""


def test_a_script_lists_its_libraries_in_its_header() -> None:
    assert parse_script(SCRIPT) == (("numpy", "pandas<2,>=1.3"), ">=3.11.2")
    assert parse_script(SCRIPT.replace("\n", "\r\n")) == (("numpy", "pandas<2,>=1.3"), ">=3.11.2")
    assert parse_script("# /// script\n# /// \n") == ((), "")


@pytest.mark.parametrize("code", ["", "result = 1", "# script\n", "# /// other\n# x = 1\n# ///\n", "  # /// script\n"])
def test_a_script_without_a_header_says_nothing(code: str) -> None:
    assert parse_script(code) is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("# ///\n", "", "script:2: .* has no end"),
        ("#\n", "\n", "script:2: .* has no end"),
        ('"numpy",', '"numpy', "script:7: this is not valid TOML"),
        ('"numpy"', '"numpy=1"', "script:7: 'numpy=1' is not a requirement"),
        (">=3.11.2", "three", "script:3: requires-python is not a version constraint"),
        ("result = payload\n", "# /// script\n# ///\n", "script:10: this is the second header"),
    ],
)
def test_a_malformed_header_is_refused_with_its_line(old: str, new: str, reason: str) -> None:
    assert old in SCRIPT
    with pytest.raises(InvalidRequest, match=reason):
        parse_script(SCRIPT.replace(old, new, 1))


@pytest.mark.parametrize("required", ["", ">=3.11.2", ">=3.9,<3.12", "==3.11.*", "~=3.10"])
def test_a_python_that_some_patch_level_of_the_image_s_meets_is_taken(required: str) -> None:
    check_python(required, (3, 11), "python:3.11")
    check_python(required, None, "unknown")


@pytest.mark.parametrize("required", [">=3.12", "<3.11", ">=3.11,<3.11", "==3.12.*"])
def test_a_python_that_the_image_does_not_have_is_refused_with_both_versions_and_what_to_do(required: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_python(required, (3, 11), "localhost/python:1")
    assert (
        caught.value.message
        == f"Python {required} is needed (requires-python), and the image localhost/python:1 has Python 3.11"
    )
    assert "--image" in caught.value.hint


def test_a_python_that_is_no_constraint_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the request: requires-python is not a version constraint"):
        check_python("three", (3, 11), "python:3.11")


def test_a_mistake_in_a_script_s_header_is_told_with_the_script_s_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^warm\.py:2: "):
        parse_script("# /// script\n# dependencies = [\n# ///\n", name="warm.py")
