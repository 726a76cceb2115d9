"""Failures of captions, found by rules: repetition, generic, wrong object, wrong attribute.

A wrong object is a noun of a list such that no reference of the photo has it, nor a word for the
same, a broader or a narrower thing; a wrong attribute is a colour, pattern or number that no
reference has. References leave things out, so that such a word need not be wrong: the counts of
people's captions, each judged by the others of its photo, say how much of a count that is.
"""

import collections
from collections.abc import Mapping, Sequence

from sparsecap_jax.evaluation.text_statistics import repeats

CLASSES = ("repetition", "generic", "wrong object", "wrong attribute")
_GENERIC_SHARE = 0.005
_GENERIC_LEAST = 3

# A line has words for one thing; a plural in -s or -es need not be there.
_OBJECTS = """
person people someone adult human individual pedestrian crowd family families
man men guy gentleman gentlemen male boyfriend
woman women lady ladies female girlfriend
child children kid toddler baby babies infant youngster
boy
girl
player athlete batter pitcher catcher goalie
rider biker bicyclist cyclist motorcyclist
skier snowboarder
surfer
skateboarder skater
animal
dog puppy puppies greyhound
cat kitten
horse pony ponies
cow cattle bull
sheep lamb goat
bird duck seagull pigeon goose geese
elephant
giraffe
zebra
bear
vehicle
car taxi
truck van pickup
bus
train locomotive
motorcycle motorbike scooter
bike bicycle
boat ship canoe kayak raft
airplane plane jet aircraft
water
ocean sea wave
lake pond river stream creek
pool
fountain
waterfall
beach shore sand
snow
grass lawn
field meadow pasture
park playground yard garden
tree woods forest branch bush
flower rose
mountain hill cliff slope
rock stone boulder
dirt mud
street road highway intersection
sidewalk pavement
building house store shop skyscraper
wall
fence railing
bench
chair couch sofa
table desk counter
bed
toilet
sink
bathroom
kitchen
bathtub tub
mirror
window
door
clock
camera
phone cellphone
computer laptop monitor keyboard
television tv
book newspaper magazine
umbrella
kite
ball football basketball baseball
frisbee disc
bat
racket racquet
skateboard skateboarding
surfboard surfing
snowboard snowboarding
guitar
microphone
food meal
pizza
sandwich sandwiches burger hotdog
cake cupcake
donut doughnut
fruit apple banana
vegetable broccoli carrot salad
plate dish bowl tray
cup mug glass bottle
knife knives fork spoon scissors
shirt t-shirt tshirt jersey sweater sweatshirt
jacket coat vest
dress skirt
suit uniform
shorts
jeans pants
hat cap helmet
sunglasses goggles glasses
backpack bag suitcase luggage purse
toy doll
stick
leash
rope
trampoline
vase
stove oven microwave
refrigerator
hydrant
sign
bridge
tent
stair
"""
_PEOPLE = "player rider skier surfer skateboarder"
# A thing, and what it is a broader word for.
_BROADER = {
    "person": f"man woman child boy girl {_PEOPLE}",
    "child": f"boy girl {_PEOPLE}",
    "man": f"boy {_PEOPLE}",
    "woman": f"girl {_PEOPLE}",
    "boy": _PEOPLE,
    "girl": _PEOPLE,
    "animal": "dog cat horse cow sheep bird elephant giraffe zebra bear",
    "vehicle": "car truck bus train motorcycle bike boat airplane",
    "water": "ocean lake pool fountain waterfall",
    "ocean": "beach",
    "grass": "field park",
    "street": "sidewalk",
    "food": "pizza sandwich cake donut fruit vegetable",
    "mountain": "rock",
    "toy": "ball frisbee",
}
_ATTRIBUTES = """
black
white
red
blue
green
yellow
orange
pink
purple violet
brown tan beige
gray grey silver
blond blonde
gold golden
striped plaid
colorful colourful
two pair couple both
three several
four several
five several
"""


def _table(lines: str) -> dict[str, set[str]]:
    """Return for each word the things it stands for, each by the first word of its line."""
    things: dict[str, set[str]] = collections.defaultdict(set)
    for line in lines.split("\n"):
        for word in line.split():
            things[word].add(line.split()[0])
    return dict(things)


_OBJECT_THINGS, _ATTRIBUTE_THINGS = _table(_OBJECTS), _table(_ATTRIBUTES)
_RELATED: dict[str, set[str]] = collections.defaultdict(set)
for _thing, _narrower in _BROADER.items():
    for _other in _narrower.split():
        _RELATED[_thing].add(_other)
        _RELATED[_other].add(_thing)


def find_failures(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, list[str]]]:
    """Return the failures of captions, tokens separated by blanks.

    Args:
        captions: one caption of each photo of a split.
        references: those of each photo.

    Returns:
        For each caption and each of `CLASSES` the words at fault, none where there is no failure.
        `repetition`: nouns of the list that it has twice, or the caption where one to four words
        stand twice in a row. `generic`: the caption, where 0.5% of the photos have it, and three
        or more.
    """
    often = max(_GENERIC_LEAST, _GENERIC_SHARE * len(captions))
    copies = collections.Counter(captions)
    found = []
    for caption, texts in zip(captions, references, strict=True):
        words, known = caption.split(), {word for text in texts for word in text.split()}
        nouns = [word for word in words if _things(word, _OBJECT_THINGS)]
        counted = collections.Counter(frozenset(_things(word, _OBJECT_THINGS)) for word in nouns)
        twice = [w for w in nouns if counted[frozenset(_things(w, _OBJECT_THINGS))] > 1]
        found.append(
            {
                "repetition": [*dict.fromkeys(twice)] or [caption] * repeats(words),
                "generic": [caption] * (copies[caption] >= often),
                "wrong object": _unknown(words, known, _OBJECT_THINGS),
                "wrong attribute": _unknown(words, known, _ATTRIBUTE_THINGS),
            }
        )
    return found


def count_failures(failures: Sequence[Mapping[str, list[str]]]) -> dict[str, int]:
    """Return the number of captions with a failure of each class, and of those with `none`."""
    counts = {name: sum(bool(one[name]) for one in failures) for name in CLASSES}
    return {**counts, "none": sum(not any(one.values()) for one in failures)}


def _things(word: str, table: dict[str, set[str]]) -> set[str]:
    for ending in ("", "s", "es"):
        if word.endswith(ending) and (singular := word[: len(word) - len(ending)]) in table:
            return table[singular]
    return set()


def _unknown(words: Sequence[str], known: set[str], table: dict[str, set[str]]) -> list[str]:
    """Return the words of a table for things that the known words name in no way."""
    named = {thing for word in known for thing in _things(word, table)}
    if table is _OBJECT_THINGS:
        named |= {other for thing in named for other in _RELATED[thing]}
    return [w for w in dict.fromkeys(words) if (things := _things(w, table)) and not things & named]
