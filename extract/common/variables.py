"""`${VAR}` and `${VAR:-default}` in a manifest: where they are replaced, and their limits.

A manifest is shared, and whoever wrote it may not be who runs it. So variables are replaced in the
few fields that say where something lies on this machine, and no value of the environment becomes
part of a URL that the file spells: it would be sent to whoever the file names.
"""

from __future__ import annotations

import os
import re
from enum import Enum
from typing import NoReturn

from hada.extract.common.errors import ManifestError

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SECRET = {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "KEY", "APIKEY", "AUTH",
           "CREDENTIAL", "CREDENTIALS", "COOKIE", "PAT"}  # fmt: skip
_LOCAL = ("/", "./", "../", "~")


class Rule(Enum):
    """What variables may do in a field."""

    NONE = "nothing: it is an error"
    PLACE = "a folder, or a URL that a variable holds from its scheme to its host"
    WEIGHTS = "as PLACE, and no part of a model's id on a hub"


def expand(text: str, rule: Rule, where: str, name: str) -> str:
    """The text with its variables replaced.

    Args:
        text: As the file has it.
        rule: What the field allows.
        where: File and line, for messages.
        name: The field's full name.

    Raises:
        ManifestError: A variable where none is replaced, one that is not set, one whose name says
            that it is a secret, or one in a URL or a hub's id that the file spells.
    """
    if "${" not in text:
        return text

    def wrong(what: str) -> NoReturn:
        raise ManifestError(f"{where}: {name!r}: {what}")

    if rule is Rule.NONE:
        wrong(
            f"{text!r} uses a variable. They are replaced in stores, runs, a dataset's root, a "
            "model's weights and its option regions only: write the value itself"
        )
    if "${" in _VARIABLE.sub("", text):
        wrong(f"{text!r}: expected ${{NAME}} or ${{NAME:-default}}")
    parts, end = [], 0  # (text, whether it came from the environment)
    for match in _VARIABLE.finditer(text):
        variable, default = match.groups()
        if _SECRET & set(variable.upper().split("_")):
            wrong(f"${{{variable}}} is named as a secret is, and is not put into a path")
        value = os.environ.get(variable)
        if not value and default is None:
            wrong(
                f"uses ${{{variable}}}, which is not set. Set it (export {variable}=...) or write "
                f"${{{variable}:-default}}"
            )
        parts += [(text[end : match.start()], False), (value or str(default), bool(value))]
        end = match.end()
    parts = [part for part in [*parts, (text[end:], False)] if part[0]]
    result = "".join(part for part, _ in parts)
    foreign = [number for number, (_, outside) in enumerate(parts) if outside]
    if not foreign:
        return result
    rest = "".join(part for part, _ in parts[1:])
    whole = foreign == [0] and (not rest or rest.startswith("/"))
    if "://" in result and not (whole and re.match(r"[\w+.:-]*://", parts[0][0])):
        wrong(
            f"{text!r}: a variable's value would be sent to the host of a URL. Let one variable "
            "hold the whole URL, or say it on the command line: --root"
        )
    if rule is Rule.WEIGHTS and not whole and not result.startswith(_LOCAL):
        wrong(
            f"{text!r}: a variable's value would be part of an id that is looked up on a hub. "
            "Begin with the variable and use no other, or with / or ./ for a local path"
        )
    return result
