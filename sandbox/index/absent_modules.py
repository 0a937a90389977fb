"""Modules that no package is to be named for: parts of Python that an image may lack, and what needs other machines."""

from __future__ import annotations

import sys

__all__ = ["ELSEWHERE", "MOVED", "REMOVED", "SCREEN", "STANDARD", "STANDARD_PACKAGES", "WINDOWS"]

SCREEN = frozenset({"tkinter", "Tkinter", "tkMessageBox", "_tkinter", "turtle", "turtledemo", "idlelib"})
# module -> the first Python without it, and what Python's own notes name in its place, or what is known to bring it
REMOVED = {
    "_bootlocale": ("3.10", ""),
    "aifc": ("3.13", "standard-aifc"),
    "asynchat": ("3.12", "pyasynchat"),
    "asyncore": ("3.12", "pyasyncore"),
    "audioop": ("3.13", "audioop-lts"),
    "binhex": ("3.11", ""),
    "cgi": ("3.13", "legacy-cgi"),
    "cgitb": ("3.13", "legacy-cgi"),
    "chunk": ("3.13", "standard-chunk"),
    "crypt": ("3.13", "crypt-r"),
    "distutils": ("3.12", "setuptools"),
    "dummy_threading": ("3.9", ""),
    "formatter": ("3.10", ""),
    "imghdr": ("3.13", "standard-imghdr"),
    "imp": ("3.12", ""),
    "lib2to3": ("3.13", ""),
    "macpath": ("3.8", ""),
    "mailcap": ("3.13", "standard-mailcap"),
    "msilib": ("3.13", ""),
    "nis": ("3.13", ""),
    "nntplib": ("3.13", "standard-nntplib"),
    "ossaudiodev": ("3.13", ""),
    "parser": ("3.10", ""),
    "pipes": ("3.13", "standard-pipes"),
    "smtpd": ("3.12", "aiosmtpd"),
    "sndhdr": ("3.13", "standard-sndhdr"),
    "spwd": ("3.13", ""),
    "sunau": ("3.13", "standard-sunau"),
    "symbol": ("3.10", ""),
    "telnetlib": ("3.13", "standard-telnetlib"),
    "uu": ("3.13", "standard-uu"),
    "xdrlib": ("3.13", "standard-xdrlib"),
}
# What one Python or another brings along: no package of that name on an index is meant.
STANDARD = frozenset(sys.stdlib_module_names | REMOVED.keys() | {"annotationlib", "compression", "tomllib"})
# Those that have modules in them.
STANDARD_PACKAGES = frozenset({
    "asyncio", "collections", "compression", "concurrent", "ctypes", "curses", "dbm", "distutils", "email", "encodings",
    "ensurepip", "html", "http", "idlelib", "importlib", "json", "lib2to3", "logging", "multiprocessing", "pathlib",
    "pydoc_data", "re", "sqlite3", "string", "sysconfig", "test", "tkinter", "tomllib", "turtledemo", "unittest",
    "urllib", "venv", "wsgiref", "xml", "xmlrpc", "zipfile", "zoneinfo",
})  # fmt: skip # a table
# (module, name) -> where newer versions of Python have it, or what they have in its place
MOVED = {
    **{("collections", name): f"collections.abc.{name}" for name in (
        "Awaitable", "ByteString", "Callable", "Collection", "Container", "Coroutine", "Generator", "Hashable",
        "ItemsView", "Iterable", "Iterator", "KeysView", "Mapping", "MappingView", "MutableMapping", "MutableSequence",
        "MutableSet", "Reversible", "Sequence", "Set", "Sized", "ValuesView",
    )},
    ("asyncio", "coroutine"): "async def",
    ("cgi", "escape"): "html.escape",
    ("fractions", "gcd"): "math.gcd",
    ("inspect", "getargspec"): "inspect.getfullargspec",
    ("itertools", "imap"): "map",
    ("itertools", "izip"): "zip",
    ("string", "maketrans"): "str.maketrans",
    ("time", "clock"): "time.perf_counter",
    ("urllib", "quote"): "urllib.parse.quote",
    ("urllib", "unquote"): "urllib.parse.unquote",
    ("urllib", "urlencode"): "urllib.parse.urlencode",
    ("urllib", "urlopen"): "urllib.request.urlopen",
}  # fmt: skip # a table
WINDOWS = frozenset({
    "_msi", "_overlapped", "_winapi", "_winreg", "msvcrt", "nt", "pythoncom", "pywintypes", "win32api", "win32com",
    "win32con", "win32event", "win32file", "win32gui", "win32process", "win32service", "winreg", "winsound", "wmi",
})  # fmt: skip # a table

_PINS = "drives the pins of a small computer"
_MICRO = "is a part of MicroPython"
# What comes with a machine or a program that a sandbox is not: why it can't be had.
ELSEWHERE = {
    "Adafruit_DHT": _PINS,
    "RPi": _PINS,
    "board": _PINS,
    "busio": _PINS,
    "digitalio": _PINS,
    "gpiod": _PINS,
    "gpiozero": _PINS,
    "lgpio": _PINS,
    "pigpio": _PINS,
    "smbus": _PINS,
    "smbus2": _PINS,
    "spidev": _PINS,
    "picamera": "drives the camera of a small computer",
    "picamera2": "drives the camera of a small computer",
    "bluetooth": "drives a Bluetooth adapter",
    "pyautogui": "works with a screen",
    "pynput": "works with a screen and a keyboard",
    "keyboard": "works with a keyboard",
    "pyaudio": "works with a sound card",
    "sounddevice": "works with a sound card",
    "machine": _MICRO,
    "micropython": _MICRO,
    "utime": _MICRO,
    "google.colab": "is a part of Google Colab",
    "dbutils": "is a part of Databricks",
    "js": "is a part of Pyodide, which is Python in a browser",
    "pyodide": "is a part of Pyodide, which is Python in a browser",
    "apt": "is a part of Debian and Ubuntu",
    "arcpy": "comes with ArcGIS",
    "bpy": "comes with Blender",
    "gi": "comes with GNOME's libraries",
    "idaapi": "comes with IDA",
    "maya": "comes with Maya",
    "qgis": "comes with QGIS",
    "unreal": "comes with the Unreal Engine",
    "uno": "comes with LibreOffice",
    "xbmc": "comes with Kodi",
}

# what Python 2 called a module -> what it has been since Python 3
RENAMED = {
    "BaseHTTPServer": "http.server", "ConfigParser": "configparser", "Cookie": "http.cookies",
    "HTMLParser": "html.parser", "Queue": "queue", "SimpleHTTPServer": "http.server", "SocketServer": "socketserver",
    "StringIO": "io", "UserDict": "collections", "UserList": "collections", "UserString": "collections",
    "__builtin__": "builtins", "anydbm": "dbm", "cPickle": "pickle", "cStringIO": "io", "commands": "subprocess",
    "cookielib": "http.cookiejar", "copy_reg": "copyreg", "dummy_thread": "_thread",
    "htmlentitydefs": "html.entities", "httplib": "http.client", "md5": "hashlib",
    "robotparser": "urllib.robotparser", "sha": "hashlib", "thread": "_thread", "urllib2": "urllib.request",
    "urlparse": "urllib.parse", "xmlrpclib": "xmlrpc.client",
}  # fmt: skip # a table
