"""Packages whose installation scripts were read by people, because `scripts` can't tell what they would leave.

An entry says all that an image needs of them. `MULTIARCH` stands for the directory of this architecture's libraries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MULTIARCH = "{multiarch}"


@dataclass(frozen=True)
class Reviewed:
    """What is done instead of a package's scripts: links (path, target), programs; `why` nothing more is needed."""

    why: str
    links: tuple[tuple[str, str], ...] = ()
    tools: tuple[tuple[str, ...], ...] = ()


_CONFIGURATION = Reviewed("it copies settings for logins and services, of which a sandbox has none")
_GIVEN = Reviewed("what it makes, every image is given by us")
_FONTS_AVAILABLE, _FONTS = "/usr/share/fontconfig/conf.avail", "/etc/fonts/conf.d"

_TABLE = {
    # passwd, group, hosts, nsswitch.conf, localtime, certificates: `sandbox.image.base.layer`
    "base-files": _GIVEN,
    "base-passwd": _GIVEN,
    "ca-certificates": _GIVEN,
    "libc-bin": _GIVEN,
    "netbase": _GIVEN,
    "tzdata": _GIVEN,
    "locales": _GIVEN,
    "debianutils": Reviewed(
        "it lists shells for logins, and chooses this program",
        links=(("/usr/bin/which", "/usr/bin/which.debianutils"),),
    ),
    "passwd": _CONFIGURATION,
    "login": _CONFIGURATION,
    "dpkg": Reviewed("it mends the records of earlier versions"),
    "dash": Reviewed("its package brings sh; the diversions are for upgrades"),
    "libc6": Reviewed("it restarts services, and mends links of earlier versions"),
    "libc6-dev": Reviewed("it mends links of earlier versions"),
    "debconf": Reviewed("it keeps answers to questions, which nobody asks here"),
    "ucf": Reviewed("it keeps copies of settings for later upgrades"),
    "python3": Reviewed("it compiles modules, which is done for all of them together"),
    "python3-minimal": Reviewed("it compiles modules, which is done for all of them together"),
    "openssl": Reviewed("it mends a link of earlier versions"),
    "readline-common": Reviewed("it copies keys for typing"),
    "usrmerge": Reviewed("everything is below /usr from the start"),
    "dbus-daemon": Reviewed("it gives the machine an identity, and no daemon runs in a sandbox"),
    "libsensors5": Reviewed("its settings are for the sensors of a machine"),
    "libsensors-config": Reviewed("its settings are for the sensors of a machine"),
    "libdebuginfod-common": _CONFIGURATION,
    "hicolor-icon-theme": Reviewed("it makes a cache, without which icons are read one by one"),
    "fontconfig-config": Reviewed(
        "its questions have these answers unless somebody changes them",
        links=(
            (f"{_FONTS}/10-hinting-slight.conf", f"{_FONTS_AVAILABLE}/10-hinting-slight.conf"),
            (f"{_FONTS}/11-lcdfilter-default.conf", f"{_FONTS_AVAILABLE}/11-lcdfilter-default.conf"),
            (f"{_FONTS}/70-no-bitmaps.conf", f"{_FONTS_AVAILABLE}/70-no-bitmaps.conf"),
        ),
    ),
    "libgdk-pixbuf-2.0-0": Reviewed(
        "it lists the readers of picture formats",
        tools=((f"/usr/lib/{MULTIARCH}/gdk-pixbuf-2.0/gdk-pixbuf-query-loaders", "--update-cache"),),
    ),
    "libpaper1": Reviewed("it asks for the usual size of paper, which is letter where nobody answers"),
    "poppler-data": Reviewed("it lists its maps for Ghostscript", tools=(("update-gsfontmap",),)),
    "xfonts-utils": Reviewed("it begins a list for an X server, of which a sandbox has none"),
    "mysql-common": Reviewed(
        "its fallback is the configuration until another package brings one",
        links=(("/etc/mysql/my.cnf", "/etc/mysql/my.cnf.fallback"),),
    ),
    "mariadb-common": Reviewed(
        "it chooses the configuration of clients",
        links=(("/etc/mysql/my.cnf", "/etc/mysql/mariadb.cnf"),),
    ),
}


def reviewed(package: str) -> Reviewed | None:
    """Return what is known of a package, whose name may end with the transition that it went through (t64)."""
    return _TABLE.get(package) or _TABLE.get(re.sub(r"t64$", "", package))
