"""Prices of plans and their revisions."""

from datetime import timedelta
from typing import Any

import pytest

from billing import prices, words
from billing.models import Price, PriceRevision
from billing.pricing import read
from licensing.catalog import RevisionIsIncomplete, RevisionIsPublished
from licensing.errors import Invalid, Refused
from licensing.models import AuditEntry
from tests.factories import AT, BY, make_meter, make_plan

pytestmark = pytest.mark.django_db
FLAT: dict[str, Any] = {"kind": "flat", "amount": "49.00"}
CALLS: dict[str, Any] = {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.002"}
DAY = timedelta(days=1)


@pytest.fixture
def price() -> Price:
    return prices.create(plan=make_plan(code="pro"), currency="EUR", by=BY, at=AT)


def published(price: Price, **values: Any) -> PriceRevision:
    row = prices.draft(price=price, components=[FLAT], by=BY, at=AT)
    return prices.publish(revision=row, by=BY, at=AT, **values)


def test_it_makes_one_price_of_a_plan_in_a_currency(price: Price) -> None:
    with pytest.raises(prices.PriceExists):
        prices.create(plan=price.plan, currency="EUR", by=BY, at=AT)
    prices.create(plan=price.plan, currency="USD", by=BY, at=AT)

    assert set(Price.objects.values_list("currency", flat=True)) == {"EUR", "USD"}
    assert AuditEntry.objects.filter(action="price.created", after__currency="EUR").count() == 1


def test_it_refuses_what_is_no_currency() -> None:
    with pytest.raises(Invalid) as refused:
        prices.create(plan=make_plan(), currency="euro", by=BY, at=AT)

    assert refused.value.pointer == "/currency"


def test_it_drafts_from_the_newest_revision(price: Price) -> None:
    prices.draft(price=price, components=[FLAT], by=BY, at=AT)

    again = prices.draft(price=price, by=BY, at=AT)

    assert (again.number, again.components) == (2, [FLAT])


@pytest.mark.parametrize(
    ("components", "pointer"),
    [
        ([{"kind": "gift"}], "/components/0/kind"),
        ([FLAT, {"kind": "flat", "amount": 49}], "/components/1/amount"),
        ([FLAT, {"kind": "flat", "amount": "-1"}], "/components/1/amount"),
        ([CALLS | {"meter": "nobody-counts-this"}], "/components/0/meter"),
        ([CALLS | {"model": "graduated"}], "/components/0/amount"),
        ({"kind": "flat"}, "/components"),
    ],
)
def test_it_refuses_components_that_cannot_be_rated_and_points_at_them(
    price: Price, components: Any, pointer: str
) -> None:
    make_meter(code="calls")
    good = prices.draft(price=price, components=[FLAT], by=BY, at=AT)

    for act in (
        lambda: prices.draft(price=price, components=components, by=BY, at=AT),
        lambda: prices.edit(revision=good, components=components, by=BY, at=AT),
    ):
        with pytest.raises(Invalid) as refused:
            act()
        assert refused.value.pointer.startswith(pointer.rpartition("/")[0])
    assert PriceRevision.objects.get().components == [FLAT]


def test_it_edits_a_draft_and_records_what_it_was(price: Price) -> None:
    make_meter(code="calls")
    row = prices.draft(price=price, components=[FLAT], by=BY, at=AT)

    prices.edit(revision=row, components=[FLAT, CALLS], by=BY, at=AT)
    prices.edit(revision=row, components=[FLAT, CALLS], by=BY, at=AT)

    entry = AuditEntry.objects.get(action="price_revision.edited")
    assert (entry.before, entry.after) == ({"components": [FLAT]}, {"components": [FLAT, CALLS]})


def test_it_publishes_to_be_effective_now_or_later(price: Price) -> None:
    now = published(price)
    later = published(price, effective_at=AT + DAY, reason="New year")

    assert (now.state, now.effective_at, later.effective_at) == ("published", AT, AT + DAY)
    now.refresh_from_db()
    assert now.state == "published"  # what follows it does not end it: stretches that began with it are rated by it
    assert AuditEntry.objects.filter(action="price_revision.published", reason="New year").count() == 1


def test_the_first_revision_may_be_effective_from_earlier_and_no_other(price: Price) -> None:
    assert published(price, effective_at=AT - 90 * DAY).effective_at == AT - 90 * DAY

    with pytest.raises(Invalid) as refused:
        published(price, effective_at=AT - DAY)

    assert refused.value.pointer == "/effective_at"


def test_it_puts_none_before_one_that_is_planned(price: Price) -> None:
    published(price)
    planned = published(price, effective_at=AT + 30 * DAY)

    with pytest.raises(prices.PriceInEffect):
        published(price, effective_at=AT + 10 * DAY)
    with pytest.raises(prices.PriceInEffect):
        published(price, effective_at=AT + 30 * DAY)

    prices.retire(revision=planned, by=BY, at=AT)
    assert published(price, effective_at=AT + 10 * DAY).state == "published"


def test_it_publishes_nothing_that_asks_for_nothing(price: Price) -> None:
    row = prices.draft(price=price, by=BY, at=AT)

    with pytest.raises(RevisionIsIncomplete):
        prices.publish(revision=row, by=BY, at=AT)


def test_it_never_changes_a_published_revision(price: Price) -> None:
    row = published(price)

    for act in (
        lambda: prices.edit(revision=row, components=[], by=BY, at=AT),
        lambda: prices.publish(revision=row, by=BY, at=AT),
        lambda: prices.discard(revision=row, by=BY, at=AT),
    ):
        with pytest.raises(RevisionIsPublished):
            act()


def test_it_takes_back_only_what_is_not_in_effect(price: Price) -> None:
    planned = published(price, effective_at=AT + DAY)
    draft = prices.draft(price=price, by=BY, at=AT)

    with pytest.raises(Refused, match="A draft revision cannot be retired"):
        prices.retire(revision=draft, by=BY, at=AT)
    with pytest.raises(prices.PriceInEffect):
        prices.retire(revision=planned, by=BY, at=AT + DAY)
    assert prices.retire(revision=planned, by=BY, at=AT, reason="Not yet").state == "retired"
    assert AuditEntry.objects.get(action="price_revision.retired").reason == "Not yet"


def test_it_discards_a_draft(price: Price) -> None:
    prices.discard(revision=prices.draft(price=price, components=[FLAT], by=BY, at=AT), by=BY, at=AT)

    assert not PriceRevision.objects.exists()
    assert AuditEntry.objects.get(action="price_revision.discarded").before["components"] == [FLAT]


def test_it_says_what_is_asked_for_otherwise(price: Price) -> None:
    make_meter(code="calls")
    before = published(price)
    after = prices.draft(price=price, components=[FLAT | {"amount": "59"}, CALLS], by=BY, at=AT)

    assert [str(each) for each in prices.diff(before, after)] == [
        "asked for: Flat fee: 49.00 EUR a month. → no longer",
        "asked for: not yet → Flat fee: 59.00 EUR a month.",
        "asked for: not yet → calls, beyond what is included: 0.002 EUR each.",
    ]


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ({"kind": "flat", "amount": "5", "name": "Base"}, "Base: 5.00 EUR a month."),
        ({"kind": "seats", "amount": "12.5"}, "Each seat: 12.50 EUR a month, in advance."),
        (
            CALLS | {"per": "1000", "amount": "1.25"},
            "calls, beyond what is included: 1.25 EUR per 1,000.",
        ),
        (
            {
                "kind": "usage", "meter": "calls", "model": "graduated",
                "tiers": [{"up_to": "100", "amount": "0.5"}, {"amount": "0.25", "flat": "3"}],
            },
            "calls, beyond what is included: up to 100: 0.50 EUR each; beyond 100: 0.25 EUR each and 3.00 EUR once. "
            "Each part at its own price.",
        ),
        (
            {"kind": "usage", "meter": "calls", "model": "volume", "tiers": [{"amount": "0.25"}]},
            "calls, beyond what is included: any number: 0.25 EUR each. "
            "All of it at the price of the part the last one is in.",
        ),
        (
            {"kind": "usage", "meter": "calls", "model": "package", "size": "500", "amount": "4"},
            "calls, beyond what is included: 4.00 EUR for each begun package of 500.",
        ),
        (
            {"kind": "usage", "meter": "volume", "model": "percentage", "percent": "1.5", "minimum": "2"},
            "volume, beyond what is included: 1.5 % of it, at least 2.00 EUR.",
        ),
        ({"kind": "discount", "percent": "10"}, "Discount: 10 % off all above."),
        ({"kind": "discount", "amount": "3", "name": "Loyalty"}, "Loyalty: 3.00 EUR a month off all above."),
        ({"kind": "minimum", "amount": "20"}, "At least 20.00 EUR a month."),
    ],
)  # fmt: skip
def test_it_puts_each_component_into_words(component: dict[str, Any], said: str) -> None:
    assert words.price(read([component]), "EUR") == [said]


@pytest.mark.parametrize(
    ("minor", "currency", "said"),
    [(123456, "EUR", "1,234.56 EUR"), (-5, "EUR", "-0.05 EUR"), (1234, "JPY", "1,234 JPY"), (1, "KWD", "0.001 KWD")],
)
def test_it_writes_an_amount_with_its_currencys_places(minor: int, currency: str, said: str) -> None:
    assert words.money(minor, currency) == said
