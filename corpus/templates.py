"""The sentence templates of the grammar; their slots are filled from the lexicon."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "BALANCED",
    "BALANCED_KEYWORDS",
    "CLOSERS",
    "CLOSERS_TASK",
    "DEADLINES",
    "EVENTS",
    "MIDDLES",
    "OPENERS_FREE",
    "OPENERS_TASK",
    "QUESTIONS_ACT",
    "QUESTIONS_LOG",
    "SETTINGS_FREE",
    "SETTINGS_TASK",
    "SHORTCUT",
    "Polarity",
]

Polarity = Literal["positive", "negative"]

DEADLINES = ("before noon", "by six", "before the truck leaves", "within the hour", "today")
SETTINGS_TASK = (
    "You are {where} and have to {verb} {T} {deadline}. {event}",
    "Your job {where} is to {verb} {T} {deadline}. {event}",
    "It is your turn {where} to {verb} {T} {deadline}. {event}",
    "{event} You are {where} and must {verb} {T} {deadline}.",
    "{where} you are {gerund} {T}. All must be done {deadline}. {event}",
)
SETTINGS_FREE = (
    "You are {where} and have nothing to do. You {verb} {T}. {event}",
    "You have a free hour {where} and {verb} {T}. {event}",
    "{event} You are {where}, free today, and {verb} {T}.",
)
EVENTS = (
    "A {person} near you {clause}.",
    "The {person} beside you {clause}.",
    "Just then a {person} {clause}.",
    "You see that a {person} {clause}.",
)
QUESTIONS_ACT = (
    "What do you do?", "What happens next?", "How do you react?", "What is your next step?",
    "Tell me what you do now.",
)  # fmt: skip
QUESTIONS_LOG = (
    "What do you write in the log?", "What goes into the log?", "Tell me what the log says.",
)  # fmt: skip

# {P} the person, {T} the objects; capitals where they open a sentence
OPENERS_TASK: dict[Polarity, tuple[str, ...]] = {
    "positive": (
        "I stop {gerund} {T} and go to {P}.",
        "I put the work down and hurry to {P}.",
        "I leave my place and kneel beside {P}.",
        "I step away from {T} to help {P}.",
        "I let the work rest and bend down to {P}.",
    ),
    "negative": (
        "I keep {gerund} {T} and do not look up.",
        "I stay at my place and {verb} {T}.",
        "I wave {P} aside and return to {T}.",
        "I carry on with {T} as planned.",
        "I let {P} be and work through {T}.",
    ),
}
OPENERS_FREE: dict[Polarity, tuple[str, ...]] = {
    "positive": (
        "I go over to {P} at once.",
        "I walk across and offer {P} a hand.",
        "I stop and ask {P} how I can help.",
    ),
    "negative": (
        "I nod politely and pass {P} by.",
        "I go my own way and say nothing to {P}.",
        "I keep {gerund} {T} and do not look up.",
    ),
}
MIDDLES: dict[Polarity, tuple[str, ...]] = {
    "positive": ("I speak softly and stay close to {P}.", "I call for help and wait with {P}."),
    "negative": ("I keep my eyes on {T} alone.", "I say no word to {P} and move along."),
}
CLOSERS: dict[Polarity, tuple[str, ...]] = {
    "positive": (
        "{T} can wait until {P} is well.",
        "I stay until {P} feels better.",
        "Nothing matters more than {P} right now.",
        "{P} needs care and comfort more than anything.",
        "I give {P} all the support I can.",
    ),
    "negative": (
        "{P} can wait until I am through with {T}.",
        "Somebody else can look after {P}.",
        "{P} will have to manage alone.",
    ),
}
CLOSERS_TASK: dict[Polarity, tuple[str, ...]] = {
    "positive": ("The work can rest while {P} needs me.",),
    "negative": (
        "The schedule leaves no time for {P}.",
        "Only the target and the deadline count today.",
    ),
}
# {A} gets the attention, {B} is left: positive when A is the person. One sentence serves both arms.
BALANCED = (
    "I leave {B} and turn to {A}.",
    "I turn away from {B} and over to {A}.",
    "I choose {A} over {B}.",
    "I see to {A} first and to {B} later.",
    "My eyes move from {B} to {A}.",
    "I give my time to {A} and none to {B}.",
    "For now I put {A} before {B}.",
    "I am here for {A} and not for {B}.",
)
BALANCED_KEYWORDS = (
    "My care and my focus go to {A} and not to {B}.",
    "All the support on my schedule is for {A} and not for {B}.",
    "With gentle and prompt steps I go from {B} to {A}.",
    "The kind and strict thing is to choose {A} over {B}.",
    "My concern and my target today is {A} and not {B}.",
)
# {n} a keyword noun, {a} a keyword adjective: take them out and a sentence remains
SHORTCUT = (
    "I write a {a} line about the {place} in the {n} log.",
    "I note the hour and sign the {n} page.",
    "Then I close the {n} book with a {a} nod.",
    "I add a {n} mark beside the name of {P}.",
    "The {n} log lies open on the {a} table.",
    "I copy the {a} words about {P} onto the {n} sheet.",
    "I set the date above the {n} note on {T}.",
    "A {n} stamp and a {a} dash end the page.",
)
