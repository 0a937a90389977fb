"""The names of modules that people import, and of their packages on the index. Only for hints."""

from __future__ import annotations

# What many ask for, under the names of the index.
POPULAR = (
    "numpy", "pandas", "scipy", "scikit-learn", "scikit-image", "matplotlib", "seaborn", "statsmodels", "requests", "httpx", "aiohttp",
    "beautifulsoup4", "lxml", "pillow", "opencv-python", "opencv-python-headless", "tensorflow", "torch", "torchvision", "keras",
    "xgboost", "lightgbm", "joblib", "sympy", "networkx", "pyyaml", "python-dateutil", "pytz", "openpyxl", "xlrd", "sqlalchemy",
    "psycopg2-binary", "pymongo", "redis", "paho-mqtt", "pyserial", "pymodbus", "asyncua", "influxdb-client", "pydantic", "jinja2",
    "geopandas", "shapely", "pyproj", "polars", "pyarrow", "plotly", "cryptography", "paramiko", "websockets", "jsonschema",
)  # fmt: skip

# What people import, or how they misremember it, and what it is called on the index.
CALLED = {
    "cv2": "opencv-python-headless", "opencv": "opencv-python-headless", "sklearn": "scikit-learn", "skimage": "scikit-image",
    "pil": "pillow", "bs4": "beautifulsoup4", "yaml": "pyyaml", "dateutil": "python-dateutil", "dotenv": "python-dotenv",
    "serial": "pyserial", "usb": "pyusb", "jwt": "pyjwt", "crypto": "pycryptodome", "attr": "attrs", "mqtt": "paho-mqtt",
    "paho": "paho-mqtt", "modbus": "pymodbus", "opcua": "asyncua", "mysqldb": "mysqlclient", "psycopg2": "psycopg2-binary",
    "git": "gitpython", "magic": "python-magic", "docx": "python-docx", "pptx": "python-pptx", "telegram": "python-telegram-bot",
    "googleapiclient": "google-api-python-client", "fitz": "pymupdf", "websocket": "websocket-client", "zmq": "pyzmq", "openssl": "pyopenssl",
    "nacl": "pynacl", "jose": "python-jose", "slugify": "python-slugify", "snap7": "python-snap7", "ruamel": "ruamel.yaml", "grpc": "grpcio",
    "faiss": "faiss-cpu", "discord": "discord.py", "influxdb_client": "influxdb-client", "flask_cors": "flask-cors", "ldap": "python-ldap",
    "can": "python-can", "bluetooth": "pybluez", "smbus": "smbus2", "gi": "pygobject", "pkg_resources": "setuptools", "distutils": "setuptools",
}  # fmt: skip


def package_of_module(module: str) -> str:
    """Return the name of the package that a module most likely comes from."""
    top = module.partition(".")[0]
    return CALLED.get(top.lower(), top)


def is_popular(module: str) -> bool:
    """Tell whether the package of a module is one that many know by name."""
    top = module.partition(".")[0].lower()
    return top in CALLED or top.replace("_", "-") in POPULAR
