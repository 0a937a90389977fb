"""What to do about a file, a directory or a program that a sandbox does not have. Pure.

Each library says in its own words that a file is missing, and many with an error of their own.
"""

from __future__ import annotations

import re

__all__ = [
    "CAUSED_BY_MISSING_FILE",
    "MISSING_DATABASE",
    "MISSING_FILE",
    "MISSING_PICTURE",
    "database",
    "missing_file",
    "picture",
]

PLAIN_PATH = r"[A-Za-z0-9_][A-Za-z0-9_+,@:./-]*"  # in the directory of the command
_PATH = r"([ -~]{1,200}?)"
_BARE = r"([\w.:/\\~-]{1,200})"
# after the error's type and `: `; without the first part, whatever the type
MISSING_FILE = "(?m)" + "|".join(
    [
        rf"\[Errno 2\] No such file or directory: '{_PATH}'$",
        rf"^FileNotFoundError: No such file or directory \(os error 2\): {_PATH}$",  # Polars
        rf"^FileNotFoundError: \[Errno 2\] Failed to open local file '{_PATH}'",  # Arrow
        rf"^FileNotFoundError: \[Errno 2\] Unable to .{{0,40}}open file .{{0,60}}name = '{_PATH}', errno = 2",  # h5py
        rf"^FileNotFoundError: File {_BARE} does not exist",  # pandas
        rf"^FileNotFoundError: {_BARE} not found\.$",  # NumPy
        rf"^FileNotFoundError: (?=\S*[./]){_BARE}$",  # Arrow's datasets
        rf"No files found that match the pattern \"{_PATH}\"",  # DuckDB
        rf"Cannot open database \"{_PATH}\" in read-only mode: database does not exist",  # likewise
        rf"Error reading file '{_PATH}': failed to load",  # lxml
        rf"Package not found at '{_PATH}'",  # python-docx, python-pptx
        rf"Error opening '{_PATH}': System error",  # soundfile
        rf"NO_SUCHFILE : Load model from {_PATH} failed",  # ONNX Runtime
        rf"Can't read ONNX file: {_PATH} in function",  # OpenCV
        rf"Could not open '{_PATH}'\.?$",  # TensorFlow Lite
        rf"^[\w.]+: {_BARE}: No such file or directory$",  # GDAL: pyogrio, fiona, rasterio
    ]
)
# a program's own error, raised from the system's
CAUSED_BY_MISSING_FILE = (
    rf"FileNotFoundError: \[Errno 2\] No such file or directory: '{_PATH}'\n\n"
    r"The above exception was the direct cause of the following exception:\n"
)
MISSING_DATABASE = r"\bOperationalError\b.{0,3} (unable to open database file|no such table)\b"
MISSING_PICTURE = r"\(-215:Assertion failed\) !\w+\.empty\(\)"

LOOKS_INTO = re.compile(r"\b(?:listdir|scandir|chdir|iterdir)\(")  # what is missing is a directory
_ANY_NAME = "--file NAME=PATH, and the program opens NAME"
_ONLY = "the sandbox has only those of your files that you send"


def missing_file(match: re.Match[str], traceback: str) -> str:
    """Return what to do about the file that a match of MISSING_FILE names."""
    named = next(filter(None, match.groups()), "")
    if "in _execute_child" in traceback and re.fullmatch(r"[\w.+-]{1,60}", named, re.ASCII):
        return (
            f"the image has no program or directory {named}: sandbox image build NAME --package PACKAGE makes an image"
            " with more programs, for --image NAME"
        )
    path = named.removeprefix("/app/").removeprefix("./")
    directory, _, name = path.rpartition("/")
    if named and not name:
        return ""
    if path.startswith("/dev/"):
        device = path if re.fullmatch(r"/dev/[a-zA-Z0-9]{1,20}", path) else "that one"
        return f"a sandbox has none of this host's devices, such as {device}"
    if "/." in path or not re.fullmatch(PLAIN_PATH, path):
        # A program must not have itself recommended a file that nobody should hand over (/etc/shadow, .ssh/id_rsa),
        # that the user perhaps can't read, nor a name that is more than one word to a shell.
        given = _ANY_NAME
    else:
        given = f"--file {path}={path}" if directory else f"--file {name}"
        if LOOKS_INTO.search(traceback):
            given = f"--file {path}/NAME={path}/NAME for each file of {path}"
    made = ", into directories that it makes" if directory else ""
    return f"{_ONLY}: {given}; what the program writes goes into its working directory{made}"


def database(_match: re.Match[str], _traceback: str) -> str:
    """Return what to do when SQLite found no database, or an empty one."""
    return f"{_ONLY}, also of databases: {_ANY_NAME}; where there is no file, SQLite begins an empty database"


def picture(_match: re.Match[str], _traceback: str) -> str:
    """Return what to do when OpenCV has nothing to work on."""
    return f"OpenCV was given no picture: imread() returns None for a file that is not there; {_ONLY}: {_ANY_NAME}"
