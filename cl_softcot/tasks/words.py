"""The word stock of the generated families. Words of different kinds never coincide, so a word tells its kind."""

from __future__ import annotations

_ONSETS = "b d f g k l m n p r s t v z".split()
_VOWELS = "a e i o u".split()


def _invented_people(n: int) -> tuple[str, ...]:
    """``n`` invented two-syllable names, spread evenly over all that the syllables allow."""
    syllables = [c + v for c in _ONSETS for v in _VOWELS]
    step = 37  # coprime to the number of syllables: neighbours in the list do not look alike
    names = []
    for i in range(n):
        first = syllables[(i * step) % len(syllables)]
        second = syllables[(i * step * 3 + i // len(syllables) + 11) % len(syllables)]
        names.append(first + second)
    if len(set(names)) != n:
        raise ValueError("invented names coincide")
    return tuple(names)


PEOPLE = _invented_people(160)
CONCEPTS = tuple(
    "wumpus lorpus zumpus yumpus rompus tumpus dumpus numpus impus vumpus jompus gorpus shumpus lempus sterpus brimpus "
    "grimpus scrompus rorpus worpus bompus felpus kerpus hilpus storpus terpus yerpus quimpus".split()
)
PROPERTIES = tuple("kind happy red small loud cold bright sweet slow brave wooden shy".split())
OBJECTS = tuple("ball key cup hat book coin lamp ring pen drum".split())
GOODS = tuple("apples pears coins books cards shells".split())
DAYS = tuple("monday tuesday wednesday thursday friday saturday sunday".split())
LETTERS = tuple("a b c d e f g h i j k l m n o p".split())
CITIES = tuple("oslo lima cairo quito delhi paris tokyo rome dakar perth turin minsk".split())
JOBS = tuple("smith baker pilot nurse tailor farmer singer judge miner clerk dyer mason".split())
PETS = tuple("cat dog parrot rabbit turtle pony goat snail ferret canary".split())
FOODS = tuple("bread soup rice plums cheese beans honey salad noodles stew".split())
