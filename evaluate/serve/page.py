"""The page of a server: a query box, a place to drop an image, results with their pictures.

All that comes from the server is put in as text, and the policy of the page runs no script but its
own file.
"""

from __future__ import annotations

import html

from hada.evaluate.pages.rendering import asset

PAGE = asset("templates/serve.html")
STYLE = asset("templates/base.css") + asset("templates/serve.css")
SCRIPT = asset("templates/serve.js")


def framed(title: str, body: str, *, script: bool = True) -> str:
    """A whole page of the server; its policy is a header."""
    tail = '<script src="/page.js"></script>' if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="stylesheet" href="/page.css"></head>'
        f"<body>{body}{tail}</body></html>"
    )
