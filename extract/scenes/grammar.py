"""Scene -> captions, as several people would write them.

A caption picks what it tells (which things, which of their attributes, a relation, a place, a
count), and how (synonyms, active or passive, with or without an opening). What it says is always
true of the picture; what it leaves out differs from caption to caption. A `Voice` holds the habits
of a writer: `PEOPLE` writes the data set, the two pretraining corpora have voices of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hada.extract.scenes.words import (
    ANY_THING,
    BACKGROUND_WORDS,
    COLOUR_WORDS,
    COLUMNS,
    GROUND_WORDS,
    NOUNS,
    NUMBERS,
    OPENINGS,
    PATTERN_WORDS,
    ROWS,
    SIZE_WORDS,
    TEXTURE_WORDS,
    plural,
)
from hada.extract.scenes.world import Dice, Scene, Thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """The habits of a writer; chances are in percent, styles are (name, weight).

    Attributes:
        shape: chance that a thing is called by its shape, and not just "a shape".
        colour, pattern, size: chance that each is told of a thing that is mentioned.
        background: chance that the background is told.
        styles: of "list", "relation", "place" and "count".
    """

    shape: int
    colour: int
    pattern: int
    size: int
    background: int
    styles: tuple[tuple[str, int], ...]


PEOPLE = Voice(
    shape=92,
    colour=90,
    pattern=60,
    size=40,
    background=60,
    styles=(("list", 4), ("relation", 4), ("place", 3), ("count", 2)),
)


def write_captions(scene: Scene, voice: Voice, dice: Dice, count: int = 5) -> list[str]:
    """Captions of one picture, no two alike.

    Args:
        scene: What the picture shows.
        voice: Which words and forms are used.
        dice: Where chance comes from; the same dice give the same captions.
        count: How many.
    """
    captions: list[str] = []
    # A picture of two things has hundreds of captions, so the draws that repeat one are few.
    while len(captions) < count:
        caption = write_caption(scene, voice, dice)
        if caption not in captions:
            captions.append(caption)
    return captions


def write_caption(scene: Scene, voice: Voice, dice: Dice) -> str:
    """One caption, a true sentence or phrase with a capital and often a full stop."""
    text = _STYLES[dice.weighted(voice.styles)](scene, voice, dice)
    if dice.chance(voice.background):
        text += _background(scene, dice)
    end = "." if dice.chance(60) else ""
    return text[0].upper() + text[1:] + end


def _thing(thing: Thing, voice: Voice, dice: Dice) -> str:
    """A noun phrase with its article, as "a small striped star" or "a star with stripes"."""
    named = dice.chance(voice.shape)
    noun = dice.pick(NOUNS[thing.shape] if named else ANY_THING)
    before, after = [], ""
    if dice.chance(voice.size):
        before.append(dice.pick(SIZE_WORDS[thing.size]))
    if dice.chance(voice.pattern):
        adjectives, clauses = PATTERN_WORDS[thing.pattern]
        if clauses and dice.chance(30):
            after = " " + dice.pick(clauses)
        else:
            before.append(dice.pick(adjectives))
    if dice.chance(voice.colour) or not (named or before or after):
        before.append(dice.pick(COLOUR_WORDS[thing.colour]))
    phrase = " ".join([*before, noun]) + after
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _background(scene: Scene, dice: Dice) -> str:
    words = []
    named = dice.below(3)  # the texture, the colour or both
    if named != 1:
        words.append(dice.pick(TEXTURE_WORDS[scene.texture]))
    if named != 0:
        words.append(dice.pick(GROUND_WORDS[scene.ground]))
    preposition = dice.pick(("on", "against", "over"))
    phrase = " ".join([*words, dice.pick(BACKGROUND_WORDS)])
    return f" {preposition} {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _join(parts: Sequence[str], dice: Dice) -> str:
    if len(parts) == 1:
        return parts[0]
    link = dice.weighted((("and", 4), ("with", 1), ("together with", 1)))
    return ", ".join(parts[:-1]) + f" {link} {parts[-1]}"


def _listing(scene: Scene, voice: Voice, dice: Dice) -> str:
    """Some or all things, in any order."""
    things = dice.shuffled(scene.things)
    most = min(len(things), 4)
    things = things[: 2 + dice.below(most - 1)]
    return dice.pick(OPENINGS) + _join([_thing(t, voice, dice) for t in things], dice)


_Sides = tuple[tuple[str, ...], tuple[str, str]]


def _where(a: Thing, b: Thing, dice: Dice) -> tuple[str, str]:
    """How a stands to b, and the same said from b's side ("with a on its left")."""
    horizontal: dict[int, _Sides] = {
        -1: (("to the left of", "left of", "on the left side of"), ("on its left", "to its left")),
        1: (
            ("to the right of", "right of", "on the right side of"),
            ("on its right", "to its right"),
        ),
    }
    vertical: dict[int, _Sides] = {
        -1: (("above", "over", "higher than"), ("above it", "over it")),
        1: (("below", "under", "beneath", "lower than"), ("below it", "under it")),
    }
    across = (a.column > b.column) - (a.column < b.column)
    down = (a.row > b.row) - (a.row < b.row)
    options = []
    if across:
        options.append(horizontal[across])
    if down:
        options.append(vertical[down])
    if abs(a.column - b.column) + abs(a.row - b.row) == 1 and dice.chance(20):
        return dice.pick(("next to", "beside")), "next to it"
    direct, inverse = dice.pick(options)
    return dice.pick(direct), dice.pick(inverse)


def _relation(scene: Scene, voice: Voice, dice: Dice) -> str:
    """Two things and how they stand to each other; at times a third beside them."""
    first, second, *rest = dice.shuffled(scene.things)
    direct, inverse = _where(first, second, dice)
    a, b = _thing(first, voice, dice), _thing(second, voice, dice)
    form = dice.below(5)
    if form == 0:
        text = f"{a} {dice.pick(('is', 'sits', 'stands', 'lies'))} {direct} {b}"
    elif form == 1:
        text = f"{a} {direct} {b}"
    elif form == 2:
        verb = dice.pick(("has been drawn", "is placed", "has been put", "is seen"))
        text = f"{a} {verb} {direct} {b}"
    elif form == 3:
        text = f"{b} with {a} {inverse}"
    else:
        text = f"{b} has {a} {inverse}"
    if rest and dice.chance(45):
        text += f", and {_thing(rest[0], voice, dice)}"
    return text


def _place_of(thing: Thing, dice: Dice) -> str:
    row, column = dice.pick(ROWS[thing.row]), dice.pick(COLUMNS[thing.column])
    if thing.row == 1 and thing.column == 1:
        return f"in the {row}"
    if thing.row == 1:
        return dice.pick((f"on the {column}", f"at the {column} edge"))
    if thing.column == 1:
        name = ROWS[thing.row][0]
        return dice.pick((f"at the {name}", f"at the {name} edge"))
    return f"in the {row} {column}" + dice.pick((" corner", ""))


def _placing(scene: Scene, voice: Voice, dice: Dice) -> str:
    """One or two things with their places."""
    things = dice.shuffled(scene.things)[: 1 + dice.below(2)]
    if len(things) == 1 and dice.chance(40):
        return f"{_place_of(things[0], dice)} there is {_thing(things[0], voice, dice)}"
    parts = [f"{_thing(t, voice, dice)} {_place_of(t, dice)}" for t in things]
    opening = dice.pick(("", "", "there is "))
    return opening + " and ".join(parts)


def _counting(scene: Scene, voice: Voice, dice: Dice) -> str:
    """How many things there are, with what some of them share or one of them is."""
    count = len(scene.things)
    text = f"{NUMBERS[count]} {plural(dice.pick(ANY_THING))}"
    if dice.chance(30):
        text = "there are " + text
    attributes = (
        ("colour", voice.colour, COLOUR_WORDS),
        ("pattern", voice.pattern, {k: v[0] for k, v in PATTERN_WORDS.items()}),
        ("size", voice.size, SIZE_WORDS),
        ("shape", voice.shape // 2, NOUNS),
    )
    name, _, words = dice.weighted([(entry, entry[1]) for entry in attributes])
    value, number = dice.pick(sorted(Counter(str(getattr(t, name)) for t in scene.things).items()))
    amount = "all" if number == count else NUMBERS[number]
    word = dice.pick(words[value])
    if name == "shape":
        word = plural(word) if number > 1 else f"a {word}"
    verb = dice.pick(("", " are" if number > 1 else " is"))
    text += f", {amount} of them{verb} {word}"
    if dice.chance(80):
        text += f", {dice.pick(('including', 'among them'))} "
        text += _thing(dice.pick(scene.things), voice, dice)
    return text


_STYLES: dict[str, Callable[[Scene, Voice, Dice], str]] = {
    "list": _listing,
    "relation": _relation,
    "place": _placing,
    "count": _counting,
}
