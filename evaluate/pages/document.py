"""The frame of every HTML page: its head, with a policy that lets nothing in from outside.

Names, captions and notes on a page come from files of others. They are escaped where they are put
in; should one ever not be, the Content-Security-Policy still lets no script run but ours, loads
nothing from anywhere, sends no form and takes no style but ours.
"""

from __future__ import annotations

import base64
import hashlib
import html


def document(title: str, *, style: str, body: str, script: str = "") -> str:
    """A whole page.

    Args:
        title: Plain text; escaped here.
        style: The only style sheet; attributes `style` have no effect.
        body: HTML, in which all that comes from elsewhere is escaped.
        script: The only script, at the end of the body; attributes `on...` have no effect.
    """
    tail = f"<script>{script}</script>\n" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(style, script)}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
{tail}</body>
</html>
"""


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with one style sheet and at most one script.

    >>> policy("", "")[:58]
    "default-src 'none'; img-src data:; style-src 'sha256-47DEQ"
    """
    return "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_digest(style)}",
            f"script-src {_digest(script) if script else _NONE}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


_NONE = "'none'"


def _digest(text: str) -> str:
    """What CSP calls a hash source, of exactly what stands between the tags."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
