"""The words of captions: the names of each attribute's values."""

from __future__ import annotations

import re

NOUNS = {
    "circle": ("circle", "disc", "round shape"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "hexagon": ("hexagon", "six sided shape"),
    "crescent": ("crescent", "moon"),
}
PLURALS = {
    "disc": "discs",
    "box": "boxes",
    "rhombus": "rhombuses",
    "cross": "crosses",
}
COLOUR_WORDS = {
    "red": ("red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "teal": ("teal", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "brown": ("brown",),
    "black": ("black", "dark"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium sized", "mid sized"),
    "large": ("large", "big", "huge"),
}
# (before the noun, after the noun)
PATTERN_WORDS = {
    "solid": (("solid", "filled", "plain"), ()),
    "striped": (("striped", "stripy"), ("with stripes",)),
    "dotted": (("dotted", "spotted"), ("with dots", "with spots")),
    "checked": (("checked", "chequered"), ("with checks",)),
    "outlined": (("outlined", "hollow", "empty"), ("drawn in outline",)),
}
GROUND_WORDS = {
    "grey": ("grey", "gray"),
    "cream": ("cream", "sandy"),
    "sky": ("light blue", "sky blue"),
    "mint": ("light green", "mint"),
    "lilac": ("lilac", "lavender"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "even"),
    "lined": ("lined", "ruled"),
    "speckled": ("speckled", "dusty"),
    "tiled": ("tiled", "chessboard"),
    "halved": ("two tone", "split"),
}
BACKGROUND_WORDS = ("background", "backdrop", "ground")
NUMBERS = ("no", "one", "two", "three", "four", "five")
ROWS = (("top", "upper"), ("middle", "centre"), ("bottom", "lower"))
COLUMNS = (("left",), ("middle", "centre"), ("right",))
OPENINGS = ("", "", "", "a picture of ", "an image of ", "there is ", "we see ", "this shows ")
ANY_THING = ("shape", "figure", "thing")

# Words that stand in the sentences of `grammar` and in no table; a test keeps this list complete.
FUNCTION_WORDS = (
    "a an and the of to in on at is are has been it its there all them with against over above",
    "under below beneath next beside left right side corner edge stands sits lies placed drawn put",
    "seen together including among higher lower than",
)


def plural(noun: str) -> str:
    """The noun for two and more: "stars", "boxes"."""
    return PLURALS.get(noun, noun + "s")


def tokens(caption: str) -> list[str]:
    """Lower-case words without punctuation, as Karpathy's JSON holds them.

    >>> tokens("A red star, with dots.")
    ['a', 'red', 'star', 'with', 'dots']
    """
    return re.findall(r"[a-z0-9]+", caption.lower())


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    tables = list(FUNCTION_WORDS)
    for nouns in NOUNS.values():
        tables += nouns + tuple(plural(noun) for noun in nouns)
    for table in (COLOUR_WORDS, SIZE_WORDS, GROUND_WORDS, TEXTURE_WORDS):
        tables += [word for words in table.values() for word in words]
    for before, after in PATTERN_WORDS.values():
        tables += before + after
    for words in ROWS + COLUMNS:
        tables += words
    tables += BACKGROUND_WORDS + NUMBERS[1:] + OPENINGS + ANY_THING
    tables += [plural(noun) for noun in ANY_THING]
    return sorted({word for phrase in tables for word in tokens(phrase)})
