"""What installation scripts of packages would leave: known without running them, or named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox.inside.image_tree.scripts import Alternative, Effects, effects_of
from sandbox.inside.image_tree.shell import NotUnderstood, parse

THERE = frozenset({"/bin/sh", "/usr/bin/tool", "/usr/share/schemas", "/usr/bin/touch"})


def effects(body: str, *arguments: str, head: str = "#!/bin/sh") -> Effects:
    return effects_of(f"{head}\n{body}", arguments=arguments or ("configure", ""), exists=THERE.__contains__)


def links_of(found: Effects) -> list[tuple[str, str]]:
    return [(each.link, each.path) for each in found.alternatives]


def test_alternatives_in_a_loop_are_found_one_by_one_with_what_follows_them() -> None:
    found = effects(
        """
        set -e
        if [ "$1" = "configure" ]; then
          for prog in convert identify; do
            update-alternatives --install /usr/bin/$prog \\
                $prog /usr/bin/${prog}-im6.q16 10000 \\
                --slave /usr/bin/$prog.x $prog.x "/usr/bin/$prog-im6.x"
          done
        fi
        """
    )
    assert found.unknown == []
    assert found.alternatives == [
        Alternative(
            f"/usr/bin/{name}", name, f"/usr/bin/{name}-im6.q16", 10000, ((f"/usr/bin/{name}.x", f"{name}.x", f"/usr/bin/{name}-im6.x"),)
        )
        for name in ("convert", "identify")
    ]  # fmt: skip # a table


def test_functions_and_cases_are_followed_with_their_arguments() -> None:
    found = effects(
        """
        choose() {
            name=$1; shift
            update-alternatives --install /usr/bin/$name $name /usr/bin/$name.real 5 || true
        }
        case "$1" in
            configure|reconfigure) choose awk ;;
            upgrade) cp /a /b ;;
            *) echo "called with $1" >&2; exit 1 ;;
        esac
        choose pager
        """
    )
    assert found.unknown == []
    assert links_of(found) == [("/usr/bin/awk", "/usr/bin/awk.real"), ("/usr/bin/pager", "/usr/bin/pager.real")]


UPGRADES = (
    'if [ "$1" = "upgrade" ]; then cp /a /b; fi',
    'if [ -n "$2" ]; then cp /a /b; fi',
    'if [ "$2" != "" ] && true; then cp /a /b; fi',
    'if dpkg --compare-versions "$2" lt-nl 3.0; then cp /a /b; fi',
    'dpkg --compare-versions "$2" ge 3.0 && cp /a /b',
    'test -z "$2" || cp /a /b',
    'if [ ! -e /bin/sh ]; then ln -s bash /bin/sh; fi',
    'if [ "$1" = configure -a ! -e "$DPKG_ROOT/usr/bin/touch" ]; then ln -s /bin/touch /usr/bin/touch; fi',
    'case "$1" in triggered) update-thing;; esac',
    'if [ "$1" != configure ]; then exit 0; fi',
    'exit 0\nunknown-program',
    'if [ -f /etc/x.dpkg-bak ]; then mv /etc/x.dpkg-bak /etc/x; fi',
    'adopt() {\n[ -f "$1.dpkg-bak" ] || return 0\nmv "$1.dpkg-bak" "$1"\n}\nadopt /etc/login.defs',
    'one() { return 1; cp /a /b; }\ntwo() { if [ "$2" = x ]; then return; fi; one; }\ntwo a b',
)  # fmt: skip # a table


@pytest.mark.parametrize("text", UPGRADES)
def test_what_is_for_another_occasion_is_passed_over(text: str) -> None:
    assert effects(text) == Effects()


HARMLESS = (
    'in_root() { ( set -e; "$@" ); }\nin_root adduser --system --home /nonexistent thing',
    'for t in gzip gunzip; do dpkg-divert --no-rename --divert "/usr/bin/$t.usr-is-merged" --add "/usr/bin/$t"; done',
    "deb-systemd-helper enable x.service >/dev/null || true",
    'if command -v py3compile >/dev/null 2>&1; then py3compile -p x; fi',
    'chown root:staff /usr/local/share || true; chmod 2775 /usr/local/share',
    "adduser --system --quiet --no-create-home thing",
    "cat <<EOF\nupdate-alternatives --install is only text; cp /a /b\nEOF",
    "cat >/dev/null <<-'EOF'\n\tcp /a /b\n\tEOF",
    'n=`cat /etc/x | sed -e "s/a/b/"`; [ "$n" = 1 ] && rm -f /etc/old',
    "# cp /a /b\necho 'cp /a /b' \"; cp /a /b\"",
    ". /usr/share/debconf/confmodule\ndb_get x/y\ndb_stop",
    'files=$(dpkg -L x | sed -n "/.py$/p")\nif [ -n "$files" ]; then python3.11 -E -S /usr/lib/python3.11/py_compile.py $files; fi',
    "while read line; do echo $line; done",
)  # fmt: skip # a table


@pytest.mark.parametrize("text", HARMLESS)
def test_what_leaves_nothing_in_an_image_is_passed_over(text: str) -> None:
    assert effects(text) == Effects()


NAMED = {
    "cp /usr/share/x/default /etc/x.conf": "it runs cp /usr/share/x/default",
    'if [ -f /etc/x ]; then update-thing --all; fi': "it runs update-thing --all",
    "echo yes > /etc/x.conf": "it writes /etc/x.conf",
    "{ echo a; echo b; } >> /etc/x.conf": "it writes /etc/x.conf",
    "sed -i -e s/a/b/ /etc/x.conf": "it runs sed -i",
    "find /usr/share/x -name '*.el' -exec compile {} +": "it runs find",
    "$helper install": "it runs $helper",
    'eval "$(make-it)"': "it runs eval",
    ". /usr/share/x/functions": "it runs . /usr/share/x/functions",
    'ln -s "$target" /etc/x': "it runs ln -s",
    "update-alternatives --install /usr/bin/java java $base/bin/java $priority": "it runs update-alternatives",
    "db_get x/y; style=$RET; if [ \"$style\" = a ]; then ln -s /a /etc/x; fi": "it runs ln -s /a /etc/x",
    "dpkg-divert --package x --rename --add /usr/bin/y": "it runs dpkg-divert",
    "true | tee-it /etc/x": "it runs tee-it",
    "if x; then y": "it can't be read",
    "echo 'without end": "it can't be read",
    "f() { f; }; f": "it can't be read: it is nested too deep",
    "exec /usr/lib/x/configure": "it runs exec /usr/lib/x/configure",
}  # fmt: skip # a table


@pytest.mark.parametrize("text", NAMED)
def test_what_is_not_understood_is_named(text: str) -> None:
    assert effects(text).unknown[0].startswith(NAMED[text]), effects(text)


@pytest.mark.parametrize("head", ["#!/usr/bin/perl -w", "#!/usr/bin/python3", "\x7fELF", ""])
def test_a_program_of_another_kind_is_named(head: str) -> None:
    assert "it is no shell script" in effects("true", head=head).unknown[0]


def test_what_may_come_after_a_function_s_end_is_not_passed_over() -> None:
    for text in (
        "one() { return 0; }\none\ncp /a /b",
        'one() { if [ -f "$UNKNOWN" ]; then return 0; fi; cp /a /b; }\none',
        "one() { return 0; }\nif [ -e /perhaps ]; then one; cp /a /b; fi",
        "return 0\ncp /a /b",
    ):
        assert effects(text).unknown == ["it runs cp /a /b"], text


def test_a_variable_that_depends_on_what_is_not_known_is_not_known() -> None:
    text = "name=a; if [ -f /etc/x ]; then name=b; fi; ln -s /usr/$name /etc/y"
    assert effects(text).unknown == ["it runs ln -s /usr/$name /etc/y"]
    certain = effects("name=a; if [ -f /usr/bin/tool ]; then name=b; fi; ln -s /usr/$name /etc/y")
    assert certain.links == [("/etc/y", "/usr/b")]


def test_makers_of_an_index_are_noted_with_their_arguments() -> None:
    found = effects("[ -d /usr/share/schemas ] && glib-compile-schemas /usr/share/schemas\nlibgvc6-config-update -c")
    assert found.tools == [("glib-compile-schemas", "/usr/share/schemas"), ("libgvc6-config-update", "-c")]
    assert effects("glib-compile-schemas $(find / -name x)").unknown != []


def test_what_stands_before_an_upgrade_is_read_like_a_first_installation() -> None:
    text = 'case "$1" in install|upgrade) dpkg-maintscript-helper x -- "$@";; esac; [ "$1" = upgrade ] && cp /a /b'
    assert effects(text, "install", "") == Effects()


def test_scripts_of_this_machine_s_own_packages_are_read() -> None:
    scripts = [path for path in Path("/var/lib/dpkg/info").glob("*.postinst") if path.read_bytes()[:9] == b"#!/bin/sh"]
    if not scripts:
        pytest.fail("this test needs a machine of the distribution")
    for path in scripts:
        found = effects_of(path.read_text(errors="replace"), arguments=("configure", ""), exists=os.path.lexists)
        assert not any("can't be read" in sentence for sentence in found.unknown), (path, found.unknown)


def test_text_that_is_no_shell_is_refused() -> None:
    with pytest.raises(NotUnderstood):
        parse("case x in a) true")
