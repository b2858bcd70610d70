"""What an explanation claims, and what supports it."""

from datetime import datetime, timedelta

import pytest

from agents.claims import find_claims, names_twice, plain_explanation, singular, unfounded
from agents.explainer import fact_values
from agents.schemas import ExplanationTask, Household, RecommendedItem
from agents.wording import with_own_lines
from tools.history import HistoryLine
from tools.signals import HOLIDAY_HORIZON_DAYS, Signal, upcoming_holidays

AS_OF = datetime(2017, 11, 16, 9)
PRODUCTS = frozenset(["milk", "cheese", "bread", "yogurt", "bean", "sauce", "squash"])
"""As `product_words` has them."""


def line(key: str, text: str, times: int = 3, days: int = 4, action: str = "purchase") -> HistoryLine:
    last = datetime(2017, 11, 16 - days)
    return HistoryLine.model_validate(
        {
            "id": key,
            "action": action,
            "item_id": key,
            "text": text,
            "category": ["Grocery", text],
            "times": times,
            "first": datetime(2017, 9, 1),
            "last": last,
            "weight": 1.0,
            "every_days": None,
        }
    )


def about(kind: str, text: str) -> Signal:
    return Signal(id="s3", kind=kind, text=text, categories=["Cranberry Sauce"])


def task(**update: object) -> ExplanationTask:
    given = ExplanationTask(
        user_id="h1",
        as_of=AS_OF,
        profile=None,
        persona=None,
        evidence=[line("h2", "White Bread", times=9)],
        item=RecommendedItem(
            item_id="i",
            title="Cranberry Sauce, 8 oz",
            category=["Grocery", "Canned Fruit", "Cranberry Sauce"],
            price=2.49,
            tag=None,
            persona=None,
            channel="cognitive",
            score=0.5,
            evidence=["h2"],
        ),
        own=[],
        signals=[
            Signal(id="s1", kind="season", text="Season: late autumn, November", categories=[]),
            Signal(id="s2", kind="holiday", text="Thanksgiving Day in 7 days", categories=[]),
        ],
    )
    return given.model_copy(update=update)


@pytest.mark.parametrize(
    ("title", "text", "supported"),
    [
        ("Desk, $1,299", "A desk at $1,299.00.", True),
        ("Paper Clips, 1 ct", "A box of 1,000 ct.", False),
        ("Paper Clips, 1,000 ct", "A box of 1000 ct.", True),
        ("Water, 1.5 l", "A bottle of 1,5 l.", True),
    ],
)
def test_a_comma_before_three_digits_parts_thousands(title: str, text: str, supported: bool) -> None:
    item = task().item.model_copy(update={"title": title})
    claims = [claim for claim in find_claims(text, task(item=item), PRODUCTS) if claim.kind == "number"]
    assert [bool(claim.support) for claim in claims] == [supported]


def test_words_of_other_alphabets_are_whole() -> None:
    text = "Süße Grüße: add cheese to purée with jalapeño."
    claims = find_claims(text, task(), frozenset(["cheese", "purée", "e", "o"]))
    assert [claim.text for claim in claims if claim.kind == "product"] == ["cheese", "purée"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cranberry sauce goes with your white bread.", [("sauce", "item"), ("bread", "h2")]),
        ("Thanksgiving is in 7 days.", [("Thanksgiving", "s2"), ("7 days", "s2")]),
        ("Thanksgiving is a week... make that 1 week away.", [("Thanksgiving", "s2"), ("1 week", "s2")]),
        ("A fall classic in the 8 oz size.", [("fall", "s1"), ("8 oz", "item")]),
        ("Only $2.49 for it.", [("$2.49", "item")]),
        ("You bought bread nine times.", [("You bought", "h2"), ("bread", "h2"), ("nine times", "h2")]),
    ],
)
def test_what_the_facts_say_is_supported(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(claim.text, claim.support) for claim in find_claims(text, task(), PRODUCTS)] == expected


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("Perfect with the cheese in your fridge.", "cheese"),
        ("Christmas is around the corner.", "Christmas"),
        ("A summer treat.", "summer"),
        ("Thanksgiving is in 3 days.", "3 days"),
        ("In the handy 16 oz size.", "16 oz"),
        ("Only $1.99 today.", "$1.99"),
        ("An organic choice.", "organic"),
        ("It is on sale.", "on sale"),
        ("Everybody picks it.", "Everybody"),
        ("Time for it again.", "again"),
        ("You bought this 12 times.", "12 times"),
        ("It cures a cold.", "cures"),
        ("One bite prevents a bad day, guaranteed.", "guaranteed"),
        ("Your bread is waiting, twice over.", "twice"),
        ("Perfect for dinner, this organic sauce is fresh.", "organic"),
        ("This sauce makes an organic, fat-free meal.", "fat-free"),
        ("You bought sauce 9 times.", "9 times"),  # which is how often it was bread
        ("A treat for the family, organic and lean.", "organic"),
        ("Good for a cozy night in, gluten-free sauce.", "gluten-free"),
        ("Great for dinner - a squash of its kind.", "squash"),
    ],
)
def test_what_no_fact_says_is_not(text: str, claim: str) -> None:
    assert claim in [found.text for found in unfounded(find_claims(text, task(), PRODUCTS))]


def test_an_occasion_in_the_name_of_what_was_bought_is_none_of_the_moment() -> None:
    own = task(evidence=[line("h2", "Christmas Cookies")])

    def support(text: str) -> list[str | None]:
        found = find_claims(text, own, PRODUCTS | {"cookie"})
        return [claim.support for claim in found if claim.kind == "occasion"]

    assert support("Christmas is just around the corner, as cookies are.") == [None]
    assert support("Christmas cookies go with it.") == ["h2"]
    fall = task(evidence=[line("h2", "Fall Flowers")])
    (claim,) = find_claims("This fall, flowers are out.", fall, PRODUCTS)
    assert claim.support == "s1"


def test_claims_are_words_of_the_text_itself() -> None:
    (claim,) = find_claims("Mother’s Day is near.", task(), PRODUCTS)
    assert claim.text == "Mother’s Day"


@pytest.mark.parametrize(
    "text",
    [
        "Good for healthy side dishes and cheese boards.",  # what it is for is an idea
        "Made for beans, yogurt and milk.",
        "The two of them will like it.",
        "A self-rising smile.",
        "Give it a try.",
    ],
)
def test_what_claims_nothing_is_let_be(text: str) -> None:
    assert find_claims(text, task(), PRODUCTS) == []


def test_what_is_for_the_households_own_thing_is_a_claim() -> None:
    assert unfounded(find_claims("Good for your cheese boards.", task(), PRODUCTS))


def test_habit_and_novelty_follow_the_history() -> None:
    known = task(own=[line("h1", "Cranberry Sauce", times=4)])
    assert not unfounded(find_claims("Time for it again, after 4 times.", known, PRODUCTS))
    assert unfounded(find_claims("Something new this week.", known, PRODUCTS))
    assert not unfounded(find_claims("Something new this week.", task(), PRODUCTS))
    looked_at = task(own=[line("h1", "Cranberry Sauce", action="click")])
    assert unfounded(find_claims("Time for it again.", looked_at, PRODUCTS))


def test_what_was_bought_once_is_no_usual_thing() -> None:
    text = "One of your usual things, and a favorite."
    once = task(own=[line("h1", "Cranberry Sauce", times=1)])
    assert [claim.text for claim in unfounded(find_claims(text, once, PRODUCTS))] == ["your usual", "favorite"]
    assert not unfounded(find_claims("Time for it again.", once, PRODUCTS))
    assert not unfounded(find_claims(text, task(own=[line("h1", "Cranberry Sauce", times=2)]), PRODUCTS))


def test_signals_of_the_item_carry_trends_and_promotions() -> None:
    told = task(signals=[about("trend", "Rising this week: Cranberry Sauce (3.2x the weeks before)")])
    text = "Everybody picks it: 3.2 times the weeks before."
    assert [claim.support for claim in find_claims(text, told, PRODUCTS)] == ["s3", "s3"]
    assert unfounded(find_claims("It is on sale.", told, PRODUCTS))


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"own": [line("h1", "Cranberry Sauce", times=4)]}, "You bought Cranberry Sauce 4 times before."),
        ({"own": [line("h1", "Cranberry Sauce", times=1)]}, "You bought Cranberry Sauce once before."),
        ({}, "Recommended because you bought White Bread."),
        ({"evidence": []}, "Cranberry Sauce, 8 oz, from the shelf Grocery > Canned Fruit > Cranberry Sauce."),
        (
            {"signals": [about("promotion", "In the mailer: Cranberry Sauce")]},
            "In the mailer: Cranberry Sauce.",
        ),
        (
            {"signals": [about("promotion", "In this week's mailer")]},
            "Cranberry Sauce, 8 oz: in this week's mailer.",
        ),
    ],
)
def test_a_plain_explanation_holds_by_the_same_check(update: dict[str, object], sentence: str) -> None:
    given = task(**update)
    assert plain_explanation(given) == sentence
    assert unfounded(find_claims(sentence, given, PRODUCTS)) == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [("berries", "berry"), ("tomatoes", "tomato"), ("boxes", "box"), ("dishes", "dish"), ("beans", "bean"),
     ("glass", "glass"), ("mother's", "mother's"), ("gas", "gas")],
)  # fmt: skip
def test_singular(word: str, expected: str) -> None:
    assert singular(word) == expected


def test_a_shown_leaf_has_its_history_whatever_the_planner_had_room_for() -> None:
    shown = Household(profile=None, history=[line("h1", "White Bread", times=9)], signals=[])
    sauces = [
        line("", "Cranberry Sauce", times=1),
        line("", "Cranberry Sauce", times=4).model_copy(update={"weight": 9}),
    ]
    found = with_own_lines(
        shown, [*shown.history, *sauces, line("", "Soap")], ["Cranberry Sauce", "White Bread", "Tea"]
    )
    assert [(one.id, one.leaf, one.times) for one in found.history] == [
        ("h1", "White Bread", 9),
        ("h2", "Cranberry Sauce", 4),
    ]
    assert with_own_lines(shown, [*shown.history, *sauces], ["White Bread"]) is shown


def test_every_holiday_that_signals_tell_of_is_an_occasion() -> None:
    days = [datetime(2017, 1, 1) + timedelta(days=days) for days in range(0, 365, HOLIDAY_HORIZON_DAYS)]
    names = {signal.text.rpartition(" in ")[0] for day in days for signal in upcoming_holidays(day.date(), "US")}
    assert len(names) > 15
    for name in names - {""}:
        found = find_claims(f"Something for {name}.", task(signals=[]), frozenset())
        assert [claim.kind for claim in found] == ["occasion"], name
        assert unfounded(found), name


def test_a_month_is_none_of_its_holidays() -> None:
    july = Signal(id="s1", kind="season", text="Season: mid summer, July", categories=[])
    (claim,) = find_claims("It makes Independence Day special.", task(signals=[july]), frozenset())
    assert claim.support is None


def test_the_items_own_line_is_no_evidence_of_another_product() -> None:
    own = line("h1", "Cranberry Sauce")
    facts = fact_values(task(own=[own], evidence=[own, line("h2", "White Bread")]))
    assert [one["text"] for one in facts["evidence"]] == ["White Bread"]
    assert "bought 3x" in facts["own"]


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("Cranberry sauce is a natural next step after cranberry sauce.", True),
        ("What would go with cranberry sauce? Perhaps cranberry sauces.", True),
        ("Cranberry sauce goes with your white bread.", False),
        ("Cranberry sauce goes with your jellied cranberry sauce.", False),  # another product
    ],
)
def test_an_item_goes_with_other_things(text: str, twice: bool) -> None:
    assert names_twice(text, task(evidence=[line("h2", "White Bread"), line("h3", "Jellied Cranberry Sauce")])) == twice


def test_a_name_in_another_alphabet_is_never_found() -> None:
    tofu = task().item.model_copy(update={"category": ["食品", "豆腐"]})
    assert not names_twice("Cranberry sauce, and cranberry sauce again.", task(item=tofu))
