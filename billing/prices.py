"""Prices of plans, per currency, in revisions: drafted, edited, published to be effective from an instant on.

A published revision never changes, and no price changes for the past. What components mean and cost is `pricing`'s.
"""

from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction

from billing import accounts, pricing, words
from billing.models import Meter, Price, PriceRevision
from licensing import audit
from licensing.audit import Actor
from licensing.catalog import Difference, RevisionIsIncomplete, RevisionIsPublished
from licensing.errors import Invalid, Refused
from licensing.models import Plan
from licensing.states import RevisionState


class PriceExists(Refused):
    """This plan has a price in this currency already."""

    code = "price_exists"


class PriceInEffect(Refused):
    """This price is in effect, or follows one that is planned for later."""

    code = "price_in_effect"


def create(*, plan: Plan, currency: str, by: Actor, at: datetime) -> Price:
    """Make a plan's price in a currency, without a revision yet.

    Raises:
        PriceExists: the plan has one in this currency.
        Invalid: a currency that is no ISO 4217 code in form.
    """
    accounts.check_currency(currency)
    price = Price(created_at=at, plan=plan, currency=currency)
    try:
        with transaction.atomic():
            price.save(force_insert=True)
            after = {"plan": plan.code, "currency": currency}
            audit.record(action="price.created", by=by, on=price, at=at, after=after)
    except IntegrityError:
        raise PriceExists() from None
    return price


def draft(*, price: Price, by: Actor, at: datetime, components: list[dict[str, Any]] | None = None) -> PriceRevision:
    """Make the price's next draft: the newest revision's components, or `components` in their place.

    Raises:
        Invalid: a component that `pricing` cannot read, or that names no meter of ours.
    """
    with transaction.atomic():
        Price.objects.select_for_update(no_key=True).get(pk=price.pk)
        newest = PriceRevision.objects.filter(price=price).order_by("-number").first()
        if components is None:
            components = newest.components if newest else []
        _check(components)
        number = newest.number + 1 if newest else 1
        row = PriceRevision.objects.create(created_at=at, price=price, number=number, components=components)
        audit.record(
            action="price_revision.drafted", by=by, on=row, at=at, after={"number": number, "components": components}
        )
    return row


def edit(*, revision: PriceRevision, components: list[dict[str, Any]], by: Actor, at: datetime) -> PriceRevision:
    """Change what a draft asks for.

    Raises:
        RevisionIsPublished: it is no draft any more.
        Invalid: as for `draft`.
    """
    with transaction.atomic():
        row = _draft_of(revision)
        _check(components)
        if row.components != components:
            before, row.components = row.components, components
            row.save()
            audit.record(
                action="price_revision.edited",
                by=by,
                on=row,
                at=at,
                before={"components": before},
                after={"components": components},
            )
    return row


def publish(
    *, revision: PriceRevision, by: Actor, at: datetime, effective_at: datetime | None = None, reason: str = ""
) -> PriceRevision:
    """Rate by a draft every stretch of a license that begins at `effective_at`, now if not said, or later.

    A price's first revision may be effective from earlier: until then nothing was asked for.

    Raises:
        RevisionIsPublished: it is no draft.
        RevisionIsIncomplete: it has no components. A price of nothing says so with a flat 0.
        Invalid: it would change a price for the past.
        PriceInEffect: a revision is published for later than that; retire it first.
    """
    effective_at = effective_at or at
    with transaction.atomic():
        Price.objects.select_for_update(no_key=True).get(pk=revision.price_id)
        row = _draft_of(revision)
        _check(row.components)
        if not row.components:
            raise RevisionIsIncomplete("A price needs at least one component. For a price of nothing, a flat 0.")
        before = PriceRevision.objects.filter(price_id=row.price_id, state=RevisionState.PUBLISHED)
        last = before.order_by("-effective_at").values_list("effective_at", flat=True).first()
        if last is not None and effective_at < at:
            raise Invalid("A price never changes for the past. Say an instant from now on.", pointer="/effective_at")
        if last is not None and effective_at <= last:
            raise PriceInEffect(
                f"A revision is effective from {last:%Y-%m-%d %H:%M} UTC on. Take a later instant, or retire it first."
            )
        row.state, row.published_at, row.effective_at = RevisionState.PUBLISHED, at, effective_at
        row.save()
        audit.record(
            action="price_revision.published",
            by=by,
            on=row,
            at=at,
            before={"state": RevisionState.DRAFT},
            after={"state": RevisionState.PUBLISHED, "number": row.number, "effective_at": effective_at},
            reason=reason,
        )
    return row


def retire(*, revision: PriceRevision, by: Actor, at: datetime, reason: str = "") -> PriceRevision:
    """Take back a published revision before it is effective.

    Raises:
        Refused: it is not published.
        PriceInEffect: it is effective already; what it asked for is owed. Publish another one after it.
    """
    with transaction.atomic():
        Price.objects.select_for_update(no_key=True).get(pk=revision.price_id)
        row = PriceRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
        if row.state != RevisionState.PUBLISHED or row.effective_at is None:
            raise Refused(f"A {row.state} revision cannot be retired.")
        if row.effective_at <= at:
            raise PriceInEffect("This price is in effect. Publish another revision to follow it.")
        row.state, row.retired_at = RevisionState.RETIRED, at
        row.save()
        audit.record(
            action="price_revision.retired",
            by=by,
            on=row,
            at=at,
            before={"state": RevisionState.PUBLISHED},
            after={"state": RevisionState.RETIRED},
            reason=reason,
        )
    return row


def discard(*, revision: PriceRevision, by: Actor, at: datetime) -> None:
    """Delete a draft that was never published. Raises `RevisionIsPublished`."""
    with transaction.atomic():
        row = _draft_of(revision)
        before = {"number": row.number, "components": row.components}
        audit.record(action="price_revision.discarded", by=by, on=row, at=at, before=before)
        row.delete()


def said(revision: PriceRevision) -> list[str]:
    """Return what a revision asks for, a sentence each."""
    return words.price(pricing.read(revision.components), revision.price.currency)


def diff(before: PriceRevision, after: PriceRevision) -> list[Difference]:
    """Return what `after` asks for and `before` does not, and the other way round, in words."""
    old, new = said(before), said(after)
    gone = [Difference("asked for", each, "no longer") for each in old if each not in new]
    return gone + [Difference("asked for", "not yet", each) for each in new if each not in old]


def _draft_of(revision: PriceRevision) -> PriceRevision:
    """Return the draft, locked. Raises `RevisionIsPublished`."""
    row = PriceRevision.objects.select_for_update(no_key=True).get(pk=revision.pk)
    if row.state != RevisionState.DRAFT:
        raise RevisionIsPublished("A published price revision never changes. Make a new revision.")
    return row


def _check(components: Any) -> None:
    """Raise `Invalid`, with a pointer, for what `pricing` cannot read, and for meters that do not exist."""
    try:
        pricing.read(components)
    except pricing.InvalidPrice as error:
        error.pointer = f"/components{error.pointer}"
        raise
    asked = {n: each["meter"] for n, each in enumerate(components) if "meter" in each}
    known = set(Meter.objects.filter(code__in=asked.values()).values_list("code", flat=True))
    for number, code in asked.items():
        if code not in known:
            raise Invalid(f"There is no meter '{code}'. Make it first.", pointer=f"/components/{number}/meter")
