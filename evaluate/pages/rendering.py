"""The templates, styles and scripts of pages: files beside this one, filled in by Jinja2.

Whatever is put into a template is escaped, and a name that is missing is an error.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

PACKAGE = "hada.evaluate.pages"
# The order in which a page runs them.
CHART_SCRIPTS = ("vendor/vega.min.js", "vendor/vega-lite.min.js", "vendor/vega-interpreter.js")


def render(name: str, **values: Any) -> str:
    """A template filled in.

    Args:
        name: The template, a file of the folder `templates`.
        values: What it needs. Text is escaped; JSON goes through its filter `tojson`, which no
            text can leave.
    """
    return _environment().get_template(name).render(**values)


def asset(name: str) -> str:
    """The text of a style sheet or script, by its path in this package."""
    return (resources.files(PACKAGE) / name).read_text("utf-8")


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A browser does not read NaN or Infinity in JSON.
    made.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    made.filters["thousands"] = lambda value: f"{value:,}"
    made.filters["signed"] = lambda value: f"{value:+.1f}"
    made.filters["fixed"] = lambda value: f"{value:.1f}"
    return made
