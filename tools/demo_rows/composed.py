"""More values for the training rows than anyone would list: texts, titles, songs and names put together from words.

A model that sees the same few values over and over learns them by heart and makes up what it hears elsewhere; one
that never sees a value twice learns to copy. The held-out rows use listed values only.

data in: nothing → out: COMPOSED, COMPOSED_ARTISTS. Nothing here is random: words meet by counting through their lists.
"""

from collections.abc import Iterator, Sequence


def _words(text: str) -> tuple[str, ...]:
    """Split a block of text at its spaces."""
    return tuple(text.split())


_NOUNS = _words("""
    ladder candle barrel wallet mirror blanket lantern basket bottle bucket carpet curtain drawer engine fence
    guitar hammer helmet jacket ladle magnet needle orchard pillow quilt radio saddle tunnel umbrella vase wagon
    anchor balcony cabinet diamond elbow falcon glacier harbor island jungle kitten lizard meadow nickel otter
    parrot quarry rocket shovel teapot uniform valley walnut yacht zipper acorn beetle canyon dolphin ember
    feather gravel hazel igloo jasmine kernel lobster marble nectar oyster pebble quartz ribbon sparrow thistle
    urchin violet willow yogurt zebra apron bagel cactus donkey envelope flute goblet hinge ivory jigsaw koala
    locket mustard noodle orchid pepper quiver rudder saffron turnip usher velvet whistle yarn badge cradle
    dagger
""")
_ADJECTIVES = _words("""
    silver crooked gentle hollow purple rusty silent wooden frozen golden hidden lazy mellow narrow polished
    quiet rapid scarlet tender upper vivid wild yellow ancient brave clever dusty eager faded giant honest icy
    jolly kind lucky muddy noble orange plain rough shiny tiny useful warm young bitter crisp damp early fancy
""")
_VERBS = _words("""
    polish repair borrow deliver examine fold gather hide inspect label mend number open paint rinse scrub
    tighten unpack wrap wind bring count dust find glue hang iron lift mix plant replace sort sweep test water
    store sell photograph assemble collect donate frame oil pump sand seal stack trade varnish weigh
""")
_PLACES = _words("""
    attic barn cellar hallway kitchen lobby office pantry shed studio garage loft porch library gym
""")
_MEETINGS = _words("""
    workshop meeting review lesson rehearsal seminar lunch dinner tour class hearing fitting screening briefing
    training tasting inspection party exam call breakfast audition contest lecture clinic
""")
_GIVEN = _words("""
    Agnes Albert Bianca Boris Celia Colin Daria Dennis Edith Elias Farah Frank Gemma Gilbert Holly Irene Igor
    Jasper Joan Karim Kira Louis Mabel Miles Nigel Nina Oscar Paula Pedro Rita Roman Selma Stella Tariq Tessa
    Ursula Viktor Wanda Wilma Xavier Yara Yusuf Zelda Arturo Bettina Cyrus Delia Emil Frieda Goran Hilda
""")
_FAMILY = _words("""
    Adler Barnes Castillo Dunn Ekberg Fischer Galli Hobbs Ibarra Jensen Kowalski Larsen Moreau Novak Ortega
    Pereira Quist Romano Sanders Tanaka Underwood Vargas Weber Yamada Zeller Becker Cho Doyle Estrada Flynn
""")
_CITIES = _words("""
    Aarhus Aleppo Antwerp Baku Bergen Bremen Brno Busan Cadiz Cardiff Cordoba Cork Dakar Darwin Dresden Durban
    Fresno Gdansk Ghent Haifa Harare Hobart Izmir Kabul Karachi Kobe Kolkata Kumasi Lahore Leipzig Liege Lille
    Luanda Lyon Malaga Maputo Medan Memphis Minsk Nantes Odessa Omaha Oran Perth Quito Recife Riga Sofia Tampa
    Tbilisi Tunis Turin Utrecht Vilnius Wroclaw Yerevan Zagreb
""")


def _meet(count: int, *lists: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Return `count` different combinations, one word of each list, stepping through every list at a pace of its own."""
    seen: set[tuple[str, ...]] = set()
    step = 0
    while len(seen) < count:
        words = tuple(words[(step * (2 * i + 1) + step // len(words)) % len(words)] for i, words in enumerate(lists))
        step += 1
        if words not in seen:
            seen.add(words)
            yield words


def _fill(forms: Sequence[str], combinations: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    """Put each combination into the next form in turn; a form takes as many of its words as it has places."""
    return tuple(dict.fromkeys(forms[i % len(forms)].format(*words) for i, words in enumerate(combinations)))


_CITY_FORMS = ("Port {0}", "{1}burg", "New {1}", "{2}ville", "{2} Falls", "Saint {0}", "{2} Beach", "{1}town")
_SONG_FORMS = ("{0} {1}", "The {0} {1}", "{1} of the {2}", "My {0} {1}", "{0} {1} Blues", "When the {1} Falls", "{1}")
_ARTIST_FORMS = ("{0} {1}", "The {2}s", "{0} {1}", "{0} and the {2}s", "{0}", "{2} {3}")
_TITLED_NOUNS, _TITLED_ADJECTIVES = ([word.title() for word in words] for words in (_NOUNS, _ADJECTIVES))

_SONGS = _fill(_SONG_FORMS, _meet(300, _TITLED_ADJECTIVES, _TITLED_NOUNS, _TITLED_NOUNS))
_ARTISTS = _fill(_ARTIST_FORMS, _meet(420, _GIVEN, _FAMILY, _TITLED_NOUNS, _TITLED_NOUNS))

COMPOSED_ARTISTS = dict(zip(_SONGS, _ARTISTS, strict=False))
"""Who sings what."""

COMPOSED: dict[str, tuple[str, ...]] = {
    "to": _fill(("{0}", "{0} {1}", "{0}", "Mr {1}", "Doctor {1}"), _meet(160, _GIVEN, _FAMILY)),
    "city": (*_CITIES, *_fill(_CITY_FORMS, _meet(200, _GIVEN, _FAMILY, _TITLED_NOUNS))),
    "restaurant": _fill(
        ("The {0} {1}", "{0} {1}", "{1} and {2}", "Chez {3}", "{2} House", "{3}'s", "Cafe {2}"),
        _meet(220, _TITLED_ADJECTIVES, _TITLED_NOUNS, _TITLED_NOUNS, _GIVEN),
    ),
    "song": tuple(COMPOSED_ARTISTS),
    "text": _fill(
        ("{0} the {1}", "{0} the {2} {1}", "{0} a {1} for {3}", "{0} the {1} in the {4}", "{0} my {1}"),
        _meet(240, _VERBS, _NOUNS, _ADJECTIVES, _GIVEN, _PLACES),
    ),
    "title": _fill(
        ("{0} {1}", "{2} {0} {1}", "{1} with {3}", "{0} {1} in the {4}", "{1} about the {0}"),
        _meet(240, _NOUNS, _MEETINGS, _ADJECTIVES, _GIVEN, _PLACES),
    ),
    "message": _fill(
        (
            "the {0} is in the {3}",
            "I can't find my {0}",
            "we need a {1} {0}",
            "the {1} {0} is gone",
            "nobody wants the {0}",
            "I will {2} the {0} later",
            "there's a {0} behind the {3}",
            "your {0} looks {1}",
            "please {2} the {0}",
            "{4} took the {0}",
            "I'm in the {3} with {4}",
            "{4} is too {1} for that",
        ),
        _meet(280, _NOUNS, _ADJECTIVES, _VERBS, _PLACES, _GIVEN),
    ),
    "note": _fill(("the {0}", "the {1} {0}", "{0} paint", "the {0} {2}", "{0}s"), _meet(220, _NOUNS, _ADJECTIVES, _MEETINGS)),
    "label": _fill(("the {0}", "the {1} {0}", "{0} soup", "{0} practice", "{0}s"), _meet(220, _NOUNS, _ADJECTIVES)),
}
"""Values by slot."""
