"""The ground floor of HADA: pictures and captions in, feature stores out.

Importing this package costs nothing but the standard library; heavy packages are imported
where they are used.
"""

import sys

# pip refuses an old Python; this word is for those who start a checkout with one. Old syntax only.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"error: HADA needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
        "Make a virtual environment with a newer one: python3.11 -m venv .venv"
    )

__version__ = "0.1.0"
