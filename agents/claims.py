"""What an explanation claims, and where that is found: in the item, the history or the signals (section 6).

Code decides what code can: numbers, products, occasions, properties, habits, trends, promotions. It reads words, not
sentences: a claim in words that no list knows is the judge's business (Factuality).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from agents.schemas import Claim, ExplanationTask
from agents.wording import moment_text, shelf_text
from prompts.rubric import ClaimKind
from tools.dataset import Dataset
from tools.history import HistoryLine
from tools.loading import load_once
from tools.retrieval import leaf_paths

WORDS_FILE = Path(__file__).parent / "claims.yaml"

UNITS = {
    "time": ("time", "times", "x"),
    "day": ("day", "days"),
    "week": ("week", "weeks"),
    "month": ("month", "months"),
    "dollar": ("dollar", "dollars"),
    "cent": ("cent", "cents"),
    "%": ("%", "percent"),
    "oz": ("oz", "ounce", "ounces"),
    "lb": ("lb", "lbs", "pound", "pounds"),
    "ct": ("ct", "count"),
    "pk": ("pk", "pack", "packs"),
    "gal": ("gal", "gallon", "gallons"),
    "qt": ("qt", "quart", "quarts"),
    "pt": ("pt", "pint", "pints"),
    "l": ("l", "liter", "liters", "litre", "litres"),
    "ml": ("ml",),
    "g": ("g", "gram", "grams"),
    "kg": ("kg",),
}
"""Units of numbers, in each of their wordings."""
SPELLED = {
    **{word: n for n, word in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 2)},
    "eleven": 11,
    "twelve": 12,
    "twice": 2,
    "thrice": 3,
}
"""Numbers in words; counted where a unit follows, or where the word has its own: "the two of them" claims nothing."""
OF_TIMES = ("twice", "thrice")

_UNIT_OF = {wording: unit for unit, wordings in UNITS.items() for wording in wordings}
_NUMBER = re.compile(
    rf"(?P<dollar>\$\s?)?(?<![\w.])(?P<number>[1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:[.,]\d+)?|{'|'.join(SPELLED)})(?![\d.]\d)"
    rf"(?:[\s-]?(?P<unit>{'|'.join(map(re.escape, sorted(_UNIT_OF, key=len, reverse=True)))})(?![a-z]))?",
    re.IGNORECASE,
)
_USE = re.compile(r"\b(?:for|fits|helps? with)\b(?:(?! [-–—] |—)[^.?!;:])*", re.IGNORECASE)
"""What a thing is for is an idea and no fact of it, unless it speaks of the item or of the household's things.

Products may be a list (`for stews, salads and soups`); a property behind a comma is the item's again.
"""
_OF_ITS_OWN = re.compile(r"\byou|\bthis\b|\bit\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['’-])*")
_THOUSANDS = re.compile(r",(?=\d{3}(?!\d))")
_SIGNAL = re.compile(r"s\d+")

Number = tuple[float, str | None]
"""A number and its unit, if it has a known one."""


class ClaimWords(BaseModel):
    """`claims.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    occasions: list[list[str]]
    holidays: list[str]
    properties: list[str]
    promotions: list[str]
    trends: list[str]
    habits: list[str]
    routines: list[str]
    purchases: list[str]
    novelties: list[str]
    promises: list[str]
    not_products: list[str]


@lru_cache(maxsize=1)
def load_claim_words() -> ClaimWords:
    """Read and validate `claims.yaml`. Reads a file: call it in a thread from async code."""
    return ClaimWords.model_validate(yaml.safe_load(WORDS_FILE.read_text(encoding="utf-8")))


@load_once(maxsize=8)
def product_words(dataset: Dataset) -> frozenset[str]:
    """Words that name a product: the last words of the catalogue's leaf categories, in the singular."""
    generic = set(load_claim_words().not_products)
    last = (_WORD.findall(path[-1].partition(",")[0])[-1:] for path in leaf_paths(dataset))
    return frozenset(singular(words[0].casefold()) for words in last if words) - generic


def find_claims(text: str, task: ExplanationTask, products: frozenset[str]) -> list[Claim]:
    """Every claim that the text makes in known words, with what supports it, in the order of the text.

    Args:
        text: the explanation.
        task: the item, the history and the signals that it was written from.
        products: see `product_words`.
    """
    facts = _Facts(task, _singular_words(text), products)
    uses = [match for match in _USE.finditer(text) if not _OF_ITS_OWN.search(match[0])]
    for_ideas = {
        "product": [match.span() for match in uses],
        "property": [(match.start(), match.start() + len(match[0].partition(",")[0])) for match in uses],
    }
    found = [*_products(text, facts, products), *_numbers(text, facts), *_phrases(text, facts, task)]
    return [
        claim
        for place, claim in sorted(found, key=lambda pair: pair[0])
        if not any(start <= place < end for start, end in for_ideas.get(claim.kind, []))
    ]


def unfounded(claims: Sequence[Claim]) -> list[Claim]:
    """The claims that nothing supports."""
    return [claim for claim in claims if claim.support is None]


def is_of_signal(claim: Claim) -> bool:
    """Whether a signal supports the claim."""
    return bool(claim.support and _SIGNAL.fullmatch(claim.support))


def names_twice(text: str, task: ExplanationTask) -> bool:
    """Whether the text names its item twice: as two things, mostly, of which one goes with the other.

    A longer name that holds the item's is another product: `extra large eggs` beside `large eggs`.

    Args:
        text: the explanation.
        task: what it was written from.
    """
    item = " ".join(_singular_words(task.item.category[-1]))
    others = [" ".join(_singular_words(line.leaf or "")) for line in task.evidence]
    names = sorted({item, *(other for other in others if item in other)}, key=len, reverse=True)
    found = re.findall(rf"(?<!\S)(?:{'|'.join(map(re.escape, names))})(?!\S)", " ".join(_singular_words(text)))
    return bool(item) and found.count(item) > 1  # a name in another alphabet has no words here


def plain_explanation(task: ExplanationTask) -> str:
    """One true sentence from the facts of the task: what is shown where no model wrote one that holds."""
    own = [line for line in task.own if line.action == "purchase"]
    others = [line for line in task.evidence if line.action == "purchase"]
    about = [signal for signal in task.signals if signal.categories]
    if own:  # of several titles of one leaf no fact says how often together
        return f"You bought {own[0].text} {'once' if own[0].times == 1 else f'{own[0].times} times'} before."
    if about:  # most signals name what they are about, which is enough
        text = about[0].text
        return f"{text}." if task.item.category[-1] in text else f"{task.item.title}: {text[0].lower()}{text[1:]}."
    if others:
        return f"Recommended because you bought {others[0].text}."
    return f"{task.item.title}, from the shelf {shelf_text(task.item.category)}."


def singular(word: str) -> str:
    """A rough singular, the same for both sides of a comparison."""
    for ending, kept in (("ies", "y"), ("oes", "o"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + kept
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "'s", "’s")) and len(word) > 3 else word


class _Facts:
    """What a text may say, by the id that a claim is linked to: `item`, `shelf`, `h3`, `s1`, `moment`."""

    def __init__(self, task: ExplanationTask, said: Sequence[str], products: frozenset[str]) -> None:
        """Read the facts of a task.

        Args:
            task: what the text was written from.
            said: its words.
            products: see `product_words`.
        """
        lines = {line.id: line for line in [*task.own, *task.evidence]}
        texts = {
            "item": task.item.title,
            "shelf": shelf_text(task.item.category),
            **{key: f"{line.text} ({line.rhythm(task.as_of)})" for key, line in lines.items()},
            **{signal.id: signal.text for signal in task.signals},
            "moment": moment_text(task.as_of),
        }
        self._said = said
        self._of_moment = [*(signal.id for signal in task.signals), "moment", "item", "shelf"]
        self._words = {key: _singular_words(text) for key, text in texts.items()}
        self._numbers: dict[str, set[Number]] = {
            key: {number for _, _, number in _read_numbers(text)} for key, text in texts.items()
        }
        for numbers in self._numbers.values():
            weeks = {(round(value / 7), value) for value, unit in numbers if unit == "day"}
            numbers |= {(float(week), "week") for week, days in weeks if abs(7 * week - days) <= 1}
        if task.item.price is not None:
            self._numbers["item"].add((task.item.price, "dollar"))
        named = products.intersection(said)

        def is_named(line: HistoryLine) -> bool:
            own = [_singular_words(text) for text in (line.leaf or "", line.text)]
            return any(_within(words, said) for words in own) or bool(named.intersection(own[1]))

        self.named = [line for line in task.evidence if is_named(line)]
        """Lines of other products that the text speaks of."""
        self._told = {"item", "shelf", "moment", *(line.id for line in [*task.own, *self.named])}
        self._told |= {signal.id for signal in task.signals}

    def saying(self, phrase: str, of_what_is_told: bool = False) -> str | None:
        """Id of the first fact with these words; if so, of item, signals and the lines that the text speaks of."""
        words = _singular_words(phrase)
        facts = self._words.items()
        return next((key for key, text in facts if _within(words, text) and self._counts(key, of_what_is_told)), None)

    def telling_of(self, occasion: Sequence[str]) -> str | None:
        """Id of the first fact that tells of an occasion, in any of its wordings: a signal, the moment, the item.

        Or a history line whose name holds the occasion, if the text says the whole name: Christmas cookies that were
        bought make no Christmas.
        """
        wordings = [_singular_words(wording) for wording in occasion]
        for key in self._of_moment:
            if any(_within(words, self._words[key]) for words in wordings):
                return key
        for line in self.named:
            name = _singular_words(line.leaf or "")
            if _within(name, self._said) and any(_within(words, name) and words != name for words in wordings):
                return line.id
        return None

    def counting(self, number: Number) -> str | None:
        """Id of the first fact with this number in its unit; a number without unit may be any.

        Of history lines, those that the text speaks of: nine purchases of bread are none of milk.
        """
        value, unit = number
        return next(
            (
                key
                for key, numbers in self._numbers.items()
                if self._counts(key, True)
                and any(value == own and unit in (None, own_unit) for own, own_unit in numbers)
            ),
            None,
        )

    def _counts(self, key: str, of_what_is_told: bool) -> bool:
        return not of_what_is_told or key in self._told


def _products(text: str, facts: _Facts, products: frozenset[str]) -> Iterator[tuple[int, Claim]]:
    for match in _WORD.finditer(text):
        word = singular(match[0].casefold())
        if word in products:
            yield match.start(), Claim(text=match[0], kind="product", support=facts.saying(word))


def _numbers(text: str, facts: _Facts) -> Iterator[tuple[int, Claim]]:
    for start, words, number in _read_numbers(text):
        yield start, Claim(text=words, kind="number", support=facts.counting(number))


def _read_numbers(text: str) -> Iterator[tuple[int, str, Number]]:
    """Each number with its place, its words, and value and unit."""
    for match in _NUMBER.finditer(text):
        word = match["number"].casefold()
        unit = "dollar" if match["dollar"] else _UNIT_OF.get((match["unit"] or "").casefold())
        if word in SPELLED:
            unit = "time" if word in OF_TIMES else unit
            if unit is not None:
                yield match.start(), match[0], (float(SPELLED[word]), unit)
        else:
            plain = _THOUSANDS.sub("", word) if word[0] != "0" else word
            yield match.start(), match[0].strip(), (float(plain.replace(",", ".")), unit)


def _phrases(text: str, facts: _Facts, task: ExplanationTask) -> Iterator[tuple[int, Claim]]:
    """Claims by the phrases of `claims.yaml`; a fact that says a phrase itself always supports it."""
    words = load_claim_words()
    purchases = [line for line in task.own if line.action == "purchase"]
    own = purchases[0].id if purchases else None
    often = own if sum(line.times for line in purchases) > 1 else None
    kinds = {signal.kind: signal.id for signal in reversed(task.signals)}
    bought = own or next((line.id for line in facts.named if line.action == "purchase"), None)
    supports: Sequence[tuple[ClaimKind, Sequence[str], Callable[[str], str | None]]] = [
        ("occasion", words.holidays, lambda phrase: kinds.get("holiday")),
        ("property", words.properties, lambda phrase: None),
        ("promotion", words.promotions, lambda phrase: kinds.get("promotion")),
        ("trend", words.trends, lambda phrase: kinds.get("trend")),
        ("habit", words.habits, lambda phrase: own),
        ("habit", words.routines, lambda phrase: often),
        ("purchase", words.purchases, lambda phrase: bought),
        ("novelty", words.novelties, lambda phrase: None if own else "item"),
        ("promise", words.promises, lambda phrase: None),
    ]
    for wordings in words.occasions:
        support = facts.telling_of(wordings)
        for start, said in _said(text, tuple(wordings)):
            yield start, Claim(text=said, kind="occasion", support=support)
    for kind, phrases, support_of in supports:
        for start, said in _said(text, tuple(phrases)):
            support = support_of(said) or facts.saying(said, of_what_is_told=True)
            yield start, Claim(text=said, kind=kind, support=support)


@lru_cache(maxsize=64)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    longest = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})s?(?![\w-])", re.IGNORECASE)


def _said(text: str, phrases: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    for match in _pattern(phrases).finditer(text.replace("’", "'")):
        yield match.start(), text[match.start() : match.end()]


def _within(words: Sequence[str], text: Sequence[str]) -> bool:
    return bool(words) and f" {' '.join(words)} " in f" {' '.join(text)} "


def _singular_words(text: str) -> list[str]:
    return [singular(word.casefold()) for word in _WORD.findall(text)]
