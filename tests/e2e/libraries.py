"""The libraries of the examples.

In the tests' virtual machine, which has no index, one environment brought along has them all.
"""

from __future__ import annotations

import os

EVERYTHING = ("beautifulsoup4", "opencv-python-headless", "pandas", "requests", "scikit-learn")
_ONE = os.environ.get("SANDBOX_ONE_ENVIRONMENT", "") not in ("", "0")
TABLES = EVERYTHING if _ONE else ("pandas", "scikit-learn")
PICTURES = EVERYTHING if _ONE else ("opencv-python-headless",)
WEB = EVERYTHING if _ONE else ("beautifulsoup4", "pandas", "requests")
