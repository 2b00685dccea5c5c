"""The frame of every HTML page: its head, with a policy that lets nothing in from outside.

Names, captions and notes on a page come from files of others. Templates escape them; should one
ever not be escaped, the Content-Security-Policy still lets no script run but ours, loads nothing
from anywhere, sends no form and takes no style but ours.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from hada.evaluate.pages.rendering import render


def document(
    template: str, *, title: str, style: str, scripts: Sequence[str] = (), **values: Any
) -> str:
    """A whole page.

    Args:
        template: A template that extends `document.html`.
        title: Plain text.
        style: The only style sheet; attributes `style` have no effect.
        scripts: The only scripts, run in this order at the end of the body; attributes `on...`
            have no effect. Blocks of JSON are no scripts.
        values: What else the template needs.
    """
    return render(
        template,
        title=title,
        style=style,
        scripts=tuple(scripts),
        policy=policy(style, scripts),
        **values,
    )


def policy(style: str, scripts: Sequence[str] = ()) -> str:
    """The Content-Security-Policy of a page with one style sheet and some scripts.

    >>> policy("")[:58]
    "default-src 'none'; img-src data:; style-src 'sha256-47DEQ"
    >>> policy("", ["1", "2"]).count("sha256-")
    3
    """
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_digest(style)}",
            f"script-src {' '.join(map(_digest, scripts)) or _NONE}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


_NONE = "'none'"


def _digest(text: str) -> str:
    """What CSP calls a hash source, of exactly what stands between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
