"""The start-up files of well-known packages, by their content: left out of environments, where nothing needs them.

A `.pth` file with code would run in every run of an environment. So packages that bring one are refused, but for
these: somebody has looked at what is lost without them. They are kept under another name, which Python does not look
for. Since no code of theirs runs, it does no harm that anybody may bring a copy.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["DISTUTILS", "LEFT_OUT", "what_is_lost"]

LEFT_OUT = ".left-out"
_NAMESPACE = "nothing: Python finds the parts of a namespace by itself"
_DISTUTILS = "nothing: an import of distutils is answered with setuptools' own where Python has none"
_ONLY_ON_REQUEST = "what it does only on request, by a variable"
# SHA-256 of a line, with the names of a namespace left out -> what is lost without it
_KNOWN = {
    # setuptools 60 and later: distutils-precedence.pth
    "2f70c2fa9227e9db9348215d9c7b246d2786aac7516f86d71a5952c7c225aa16": _DISTUTILS,
    # *-nspkg.pth, as setuptools wrote them: matplotlib, protobuf, Paste ...
    "c2d8a9d794d2ab68111c2f7c821a2c522342d196b1c7a7467606ff4701c77f64": _NAMESPACE,
    # the same below another namespace: google-cloud-*
    "6331a77113b32894df24e254b2a6e313d61bd423bdfed842e8370bb976bbddb3": _NAMESPACE,
    # since setuptools 69: google-generativeai
    "d89ab425a8938efa448b0f8dc0727fb6bf626dc1eea3ca81435eb35fa2f5b8f7": _NAMESPACE,
    # the same below another namespace
    "1a3fd88d6f0c5e36c14492fa06281f32cf434baa3037042888890fe7185e486c": _NAMESPACE,
    # before setuptools 31: zope.*, ruamel.yaml
    "b15e7d01acc460a5c1f2cc67835b0339ccebe6d3047a5cd0d0d51009103dfa60": _NAMESPACE,
    # the same below another namespace
    "a95a18deb701d82c3c5d47ab6712c50d40a7ecefc67f650f3d71d43b8300d713": _NAMESPACE,
    # still older: repoze.*
    "108a868135c754798ef3cd2e9919e58a30fac172282980452df4d95495306664": _NAMESPACE,
    # coloredlogs
    "534871dd2d306233b9bc058935129c7121fc40177c03ff96748246fd20ff92a5": _ONLY_ON_REQUEST,
    # coverage
    "2cbb286eeaf39b2cd7d68cb09c1bc3cfb0cc8d27da949004d0c22698f127f270": _ONLY_ON_REQUEST,
    # pytest-cov
    "b8e1b828090bfec4b25656d04cd0948d3e70221ea8281ac0e12569eef48ae2a6": _ONLY_ON_REQUEST,
    # better-exceptions
    "1211bcef1af62b31ce15a99922cc0659e5339715c43d015f754c61c6e6ff6477": _ONLY_ON_REQUEST,
    # hunter
    "178a7b7c01ff9a8c78ddef720a619e211e8896d2707ba274cb80dadab7d89bc0": _ONLY_ON_REQUEST,
    # manhole
    "3884ab4f1a7fae4405f52cf89a3302d9a35458334c81dd006cf4008a121feeee": _ONLY_ON_REQUEST,
}
_NAMES = re.compile(r"\*\(('\w+'(?:, ?'\w+')*),?\)")
# Stands in for Python's own module where it has none, which from Python 3.12 on is everywhere.
DISTUTILS = (
    "distutils/__init__.py",
    b'''"""distutils, which is no part of Python any more, from setuptools."""

import sys

sys.modules.pop(__name__, None)
import setuptools

if __name__ not in sys.modules:
    raise ModuleNotFoundError(f"No module named {__name__!r}", name=__name__)
''',
)


def what_is_lost(content: bytes) -> str | None:
    """Return what is lost without a start-up file, or None for one that nobody has looked at."""
    try:
        lines = content.decode("ascii").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        return None
    told = [_KNOWN.get(_fingerprint(line)) for line in lines if line.strip() and not line.startswith("#")]
    if not told or None in told:
        return None
    return "; ".join(dict.fromkeys(one for one in told if one))


def _fingerprint(line: str) -> str:
    """Return the hash of a line in which the names of a namespace, if it makes one, stand for all names."""
    if found := _NAMES.search(line):
        names = re.findall(r"\w+", found[1])
        line = line.replace(found[0], "*NAMES").replace(f"'{'.'.join(names)}'", "NAME")
        if len(names) > 1:
            line = line.replace(f"['{'.'.join(names[:-1])}'], '{names[-1]}'", "[PARENT], LAST")
    return hashlib.sha256(line.strip().encode()).hexdigest()
