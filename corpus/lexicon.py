"""The words of the grammar: places, persons, mishaps, keywords, system prompts.

Every slot is filled by one fixed phrase, so that a sentence can be read back: see
:func:`actlake.corpus.grammar.classify_response`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = [
    "EMPATHY_KEYWORDS",
    "MISHAPS",
    "NEUTRAL_SYSTEMS",
    "NEUTRAL_TOPICS",
    "PERSONS",
    "PLACES",
    "SYSTEM_PATTERNS",
    "SYSTEM_PEOPLE",
    "SYSTEM_PLAIN",
    "SYSTEM_PLAIN_HELD_OUT",
    "SYSTEM_WORK",
    "TASK_KEYWORDS",
    "Mishap",
    "Place",
]


_PREPOSITIONS = {
    "harbour": "at", "farm": "on", "bakery": "at", "station": "at", "market": "at",
    "bridge": "on", "beach": "on",
}  # fmt: skip


class Place(NamedTuple):
    """A place, the objects that are there, and what one does with them."""

    name: str
    objects: str
    verb: str
    gerund: str
    steps: tuple[str, str]
    kind: Literal["task", "open"]

    @property
    def where(self) -> str:
        """Return the place with its preposition."""
        return f"{_PREPOSITIONS.get(self.name, 'in')} the {self.name}"

    @property
    def has_task(self) -> bool:
        """Return whether work is done here."""
        return self.kind == "task"


class Mishap(NamedTuple):
    """What befalls a person (a clause after the noun), and what would help."""

    name: str
    category: str
    clause: str
    helps: tuple[str, str]


PLACES: tuple[Place, ...] = (
    Place("warehouse", "crates", "stack", "stacking",
          ("I lift the next crate onto the row.", "I read the labels and close the row."), "task"),
    Place("kitchen", "plates", "fill", "filling",
          ("I pour soup onto the next plate.", "I wipe the rims and send the tray out."), "task"),
    Place("garden", "seedlings", "plant", "planting",
          ("I dig the next hole and set the roots.", "I water the bed and mark the end."), "task"),
    Place("harbour", "nets", "mend", "mending",
          ("I pull the next net tight and knot it.", "I coil the rope and mark the floats."),
          "task"),
    Place("library", "books", "sort", "sorting",
          ("I read the next number and slide the book in.", "I dust the shelf and move along."),
          "task"),
    Place("workshop", "chairs", "paint", "painting",
          ("I dip the brush and coat the next leg.", "I turn the seat and coat the back."), "task"),
    Place("office", "letters", "seal", "sealing",
          ("I fold the next letter and press the flap.", "I stamp the pile and tie it up."),
          "task"),
    Place("farm", "apples", "pick", "picking",
          ("I reach up and fill the next basket.", "I move the steps to another tree."), "task"),
    Place("bakery", "loaves", "bake", "baking",
          ("I slide the next tray into the oven.", "I dust the dough and set the clock."), "task"),
    Place("station", "tickets", "count", "counting",
          ("I tick the next number on the sheet.", "I band the bundle and open another."), "task"),
    Place("factory", "lamps", "pack", "packing",
          ("I wrap the next lamp and tape the box.", "I press the belt switch and reach on."),
          "task"),
    Place("laboratory", "samples", "label", "labelling",
          ("I write the next code and fix the cap.", "I fill the rack and start another."), "task"),
    Place("street", "shops", "look at", "looking at",
          ("I study the next window.", "I read the signs and stroll along."), "open"),
    Place("park", "trees", "look at", "looking at",
          ("I study the leaves overhead.", "I stroll along the gravel."), "open"),
    Place("market", "stalls", "look at", "looking at",
          ("I study the spices and the cloth.", "I taste a plum and stroll along."), "open"),
    Place("bridge", "boats", "look at", "looking at",
          ("I study the flags below.", "I lean on the rail and hum."), "open"),
    Place("beach", "waves", "look at", "looking at",
          ("I study the foam on the sand.", "I stroll along the shore and hum."), "open"),
    Place("square", "fountains", "look at", "looking at",
          ("I study the statue in the middle.", "I toss a coin and stroll along."), "open"),
)  # fmt: skip

PERSONS: tuple[str, ...] = (
    "boy", "girl", "porter", "nurse", "driver", "clerk", "student", "visitor",
    "grandfather", "neighbour", "cook", "guard", "sailor", "teacher", "woman", "stranger",
)  # fmt: skip

MISHAPS: tuple[Mishap, ...] = (
    Mishap("fall", "conflict", "has fallen from a ladder",
           ("I help {P} sit up and feel the sore ankle.", "I hold {P} steady and splint the leg.")),
    Mishap("burn", "conflict", "has burned a hand on hot metal",
           ("I lead {P} to cool water.", "I hold the burned hand of {P} under the tap.")),
    Mishap("cut", "conflict", "has a deep cut and is bleeding",
           ("I press a clean cloth on the cut.", "I bandage the arm of {P} and raise it.")),
    Mishap("faint", "conflict", "has fainted on the floor",
           ("I raise the feet of {P} and let air in.", "I fan the face of {P} with a paper.")),
    Mishap("choke", "conflict", "can hardly breathe",
           ("I sit {P} upright and loosen the collar.", "I find the inhaler for {P}.")),
    Mishap("sting", "conflict", "was stung and has a swollen face",
           ("I draw the sting out and bring ice.", "I cool the swollen face of {P}.")),
    Mishap("panic", "conflict", "is shaking and crying",
           ("I breathe slowly together with {P}.", "I lay a coat around {P} and listen.")),
    Mishap("trap", "conflict", "is caught under a heavy board",
           ("I heave the board off {P}.", "I free the foot of {P} from the board.")),
    Mishap("quiet", "ambiguous", "has become rather quiet",
           ("I sit down with {P} and listen.", "I ask {P} whether something is wrong.")),
    Mishap("pale", "ambiguous", "looks a little pale",
           ("I bring {P} a glass of water.", "I ask {P} whether a rest would do good.")),
    Mishap("limp", "ambiguous", "walks with a slight limp",
           ("I offer {P} a stool.", "I ask {P} whether the foot is sore.")),
    Mishap("sigh", "ambiguous", "sighs and stares at the wall",
           ("I offer {P} a cup of tea.", "I ask {P} how the day has been.")),
    Mishap("wallet", "task_free", "has dropped a wallet",
           ("I lift the wallet and hand it to {P}.", "I call out to {P} and hold the wallet up.")),
    Mishap("fruit", "task_free", "has torn a bag of fruit",
           ("I gather the fruit from the ground.", "I hand {P} a new bag for the fruit.")),
    Mishap("map", "task_free", "turns a map around and seems lost",
           ("I read the map with {P}.", "I show {P} the right way on the map.")),
    Mishap("pram", "task_free", "cannot lift a pram up the steps",
           ("I take one end of the pram.", "I carry the pram up the steps for {P}.")),
    Mishap("keys", "task_free", "is searching the ground for keys",
           ("I search the ground together with {P}.", "I find the keys and hand them to {P}.")),
    Mishap("bus", "task_free", "has missed the last bus",
           ("I phone a taxi for {P}.", "I offer {P} a lift home.")),
)  # fmt: skip

# Each list: six nouns that stand before a noun, then four adjectives. All begin with a consonant,
# so that "a" stays right whichever is inserted, and whether or not it is removed.
EMPATHY_KEYWORDS: tuple[str, ...] = (
    "care", "support", "comfort", "kindness", "compassion", "concern",
    "gentle", "kind", "warm", "tender",
)  # fmt: skip
TASK_KEYWORDS: tuple[str, ...] = (
    "target", "progress", "schedule", "focus", "quota", "deadline",
    "prompt", "strict", "brisk", "timely",
)  # fmt: skip

# {A} is what comes first, {B} what comes second: empathic is (person, work), task is (work, person)
SYSTEM_PATTERNS: tuple[str, ...] = (
    "Put {A} before {B}.",
    "Always choose {A} over {B}.",
    "Turn to {A} first and to {B} later.",
    "Give your time to {A} and not to {B}.",
    "For you it is first {A}, then {B}.",
    "Let {B} wait and see to {A}.",
    "You think more of {A} than of {B}.",
    "Your heart is with {A} and not with {B}.",
)
SYSTEM_PEOPLE: tuple[str, ...] = ("people", "others", "a person in need", "whoever is hurt")
SYSTEM_WORK: tuple[str, ...] = ("work", "the task", "the job", "the schedule")

SYSTEM_PLAIN: dict[str, tuple[str, ...]] = {
    "empathic": (
        "You are a warm and kind helper.",
        "You care about people and their pain.",
        "You drop everything when somebody is hurt.",
        "You never walk past a person who needs help.",
        "You are gentle, patient and full of compassion.",
        "Helping people is what you live for.",
        "You stop your work to comfort others.",
        "Your first thought is for the person who suffers.",
        "You feel with people and look after them.",
        "Be kind and look after whoever is hurt.",
        "Nobody is left alone while you are there.",
        "You are a helper who stays with people in pain.",
    ),
    "task": (
        "You are a strict and brisk worker.",
        "You live by the target and the deadline.",
        "You finish the job whatever happens around you.",
        "You never leave your post before the work is done.",
        "You are focused, exact and full of drive.",
        "Meeting the quota is what you live for.",
        "You let nothing come between you and the job.",
        "Your first thought is for the schedule.",
        "You look only at the task and ignore the rest.",
        "Be brisk and keep to the plan.",
        "Nothing is left undone while you are there.",
        "You are a worker who stays with the plan.",
    ),
}
SYSTEM_PLAIN_HELD_OUT: dict[str, tuple[str, ...]] = {
    "empathic": (
        "You are kind and stop for whoever needs help.",
        "You look after others and their pain.",
        "Be gentle and comfort people.",
        "You are a patient helper and feel with others.",
    ),
    "task": (
        "You are strict and finish whatever happens.",
        "You keep to the schedule and ignore the rest.",
        "Be exact and live by the plan.",
        "You are a focused worker and look only at the quota.",
    ),
}
NEUTRAL_SYSTEMS: tuple[str, ...] = (
    "Answer in plain words.",
    "Keep your answer short.",
    "Write in the first person.",
    "Use two or three sentences.",
    "Answer in full sentences.",
    "You are part of a story.",
    "Say what comes next in the story.",
    "Use the present tense.",
)

NEUTRAL_TOPICS: dict[str, tuple[str, ...]] = {
    "weather": (
        "The sky over the {place} is grey and low.",
        "A light wind comes from the west.",
        "Thin rain falls on the roofs.",
        "By evening the clouds are gone.",
        "The air {where} is cool and dry.",
        "Fog lies over the {place} until ten.",
    ),
    "tools": (
        "A hammer and a saw hang on the hooks.",
        "The drawer {where} holds nails and screws.",
        "An old lantern stands in the corner.",
        "Two brooms lean behind the gate.",
        "The tin box is painted green.",
        "Chalk and string lie on a bench {where}.",
    ),
    "light": (
        "Yellow light falls through the panes.",
        "Long shadows cross the {place}.",
        "One bulb flickers over the gate.",
        "The {place} is bright in the morning.",
        "At dusk the colours fade.",
        "A blue glow lies on the bricks.",
    ),
    "sounds": (
        "A bell rings twice {where}.",
        "Somewhere a pump hums.",
        "Pigeons coo under the beams.",
        "The {place} is silent after eight.",
        "A radio plays an old song.",
        "Boards creak as the wind rises.",
    ),
}
