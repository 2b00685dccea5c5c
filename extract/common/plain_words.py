"""What a manifest or a command line says of splits and columns, as plain values."""

from __future__ import annotations

from hada.extract.common.errors import UsageError
from hada.extract.common.names import is_name

# What the columns of a table may mean.
MEANINGS = ("image", "caption", "split")
_DEFAULT_NAMES = {1: ("all",), 2: ("train", "val"), 3: ("train", "val", "test")}
# What rounding leaves of shares that add up to 1.
_SLACK = 1e-6


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """`0.8,0.1,0.1` or `train=0.9,test=0.1` as shares by split; raises `UsageError`.

    >>> parse_shares("0.8,0.1,0.1")
    (('train', 0.8), ('val', 0.1), ('test', 0.1))
    """
    parts = [part.strip() for part in text.split(",")]
    named = [part.rpartition("=") for part in parts]
    names = [name.strip() for name, equals, _ in named if equals] or list(
        _DEFAULT_NAMES.get(len(parts), ())
    )
    try:
        shares = [float(value) for _, _, value in named]
    except ValueError:
        shares = []
    if (
        len(shares) != len(parts)
        or len(names) != len(parts)
        or len(set(names)) != len(names)
        or not all(is_name(name) for name in names)
        or not all(0 < share <= 1 for share in shares)
        or abs(sum(shares) - 1) > _SLACK
    ):
        raise UsageError(
            f"{text!r}: expected shares that add up to 1, as in 0.8,0.1,0.1 (train, "
            "val and test), 0.9,0.1 (train and val), or train=0.9,test=0.1"
        )
    return tuple(zip(names, shares, strict=True))


def parse_columns(text: str) -> dict[str, tuple[str, ...]]:
    """`image=file,caption=a,caption=b` as column names by meaning; raises `UsageError`.

    >>> parse_columns("image=file,caption=en,caption=de")
    {'image': ('file',), 'caption': ('en', 'de')}
    """
    asked: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        meaning, equals, name = part.partition("=")
        if not equals or not name or meaning not in MEANINGS:
            raise UsageError(
                f"--columns {text!r}: expected MEANING=COLUMN with commas between, as in "
                f"image=file,caption=text; the meanings are {', '.join(MEANINGS)}"
            )
        asked[meaning] = (*asked.get(meaning, ()), name)
    return asked
