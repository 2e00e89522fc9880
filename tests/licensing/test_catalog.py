"""Products, plans and revisions: every license type is a combination of terms; what is published never changes."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import DatabaseError, transaction

from licensing import activations, catalog, lifecycle, seats, snapshots
from licensing.catalog import CodeTaken, Grant, RevisionIsIncomplete, RevisionIsPublished
from licensing.decision import Scope, decide
from licensing.errors import Invalid, Refused
from licensing.models import AuditEntry, Entitlement, PlanRevision
from licensing.seats import LicenseNotUsable
from tests.factories import AT, BY, make_license, make_plan, make_product, make_revision

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
PRINT, OTHER = "machine-000000000001", "machine-000000000002"
API_CALLS = Grant(key="api", kind="allowance", meter="calls", amount=Decimal("1000"), overage="charge")


def verdict(license, at=AT, **asked) -> str:
    """Return what is decided of the license as the database holds it."""
    asked_for = Scope(**asked)
    found = snapshots.by_id(license.pk, asked_for)
    return str(decide(found.picture.snapshot, snapshots.scoped(found, asked_for), at).code)


def draft(plan=None, **terms):
    return catalog.draft(plan=plan or make_plan(), by=BY, at=AT, **terms)


# --- license types ----------------------------------------------------------------------------------

TYPES = {
    "perpetual": {"duration": None, "maintenance": 365 * DAY},
    "subscription": {"duration": 365 * DAY, "grace_period": 14 * DAY},
    "trial": {"trial": True, "duration": 14 * DAY, "validity_basis": "from_first_activation"},
    "floating": {"seat_kind": "floating", "seat_limit": 5},
    "floating, leased": {"seat_kind": "floating", "seat_limit": 5, "seat_required": True},
    "node-locked": {"activation_required": True, "activation_limit": 1, "fingerprint_scope": "product"},
    "named-user": {"seat_kind": "named", "seat_required": True, "seat_limit": 2},
    "metered": {"scheme": "usage", "seat_limit": None, "grants": [API_CALLS]},
    "hybrid": {"scheme": "both", "seat_limit": 3, "grants": [API_CALLS]},
}
# type, what was done before, instant, what is asked, the answer
DECIDED = [
    ("perpetual", "", AT + 36_500 * DAY, {}, "valid"),
    ("perpetual", "", AT + 364 * DAY, {"version": "9"}, "valid"),
    ("perpetual", "", AT + 365 * DAY, {"version": "9"}, "version_not_covered"),
    ("subscription", "", AT + 365 * DAY - TICK, {}, "valid"),
    ("subscription", "", AT + 365 * DAY, {}, "in_grace"),
    ("subscription", "", AT + 379 * DAY, {}, "expired"),
    ("trial", "", AT + 100 * DAY, {}, "valid"),
    ("trial", "activated", AT + 14 * DAY - TICK, {"fingerprint": PRINT}, "valid"),
    ("trial", "activated", AT + 14 * DAY, {"fingerprint": PRINT}, "expired"),
    ("floating", "", AT, {}, "valid"),
    ("floating", "", AT, {"seat_holder": "ada@example.com"}, "valid"),
    ("floating, leased", "", AT, {"fingerprint": PRINT}, "seat_required"),
    ("node-locked", "", AT, {}, "activation_required"),
    ("node-locked", "", AT, {"fingerprint": PRINT}, "activation_required"),
    ("node-locked", "activated", AT, {"fingerprint": PRINT}, "valid"),
    ("node-locked", "activated", AT, {"fingerprint": OTHER}, "fingerprint_mismatch"),
    ("node-locked", "activated", AT, {}, "activation_required"),
    ("named-user", "", AT, {}, "seat_required"),
    ("named-user", "seated", AT, {"seat_holder": "ada@example.com"}, "valid"),
    ("named-user", "seated", AT, {"seat_holder": "bob@example.com"}, "seat_required"),
    ("metered", "", AT, {"entitlements": ("api",)}, "valid"),
    ("metered", "", AT, {"entitlements": ("export",)}, "entitlement_missing"),
    ("hybrid", "seated", AT, {"seat_holder": "ada@example.com", "entitlements": ("api",)}, "valid"),
]


@pytest.mark.parametrize(("kind", "before", "at", "asked", "code"), DECIDED)
def test_it_makes_every_license_type_from_a_revision_alone(kind, before, at, asked, code):
    license = make_license(**TYPES[kind])
    if before == "activated":
        activations.activate(license=license, fingerprint=PRINT, by=BY, at=AT)
    if before == "seated":
        seats.assign(license=license, holder="ada@example.com", by=BY, at=AT)

    assert verdict(license, at, **asked) == code


def test_it_decides_every_type():
    assert {kind for kind, *_ in DECIDED} == set(TYPES)


# --- drafts -----------------------------------------------------------------------------------------


def test_it_makes_products_and_plans_once_per_code():
    product = make_product(code="atlas")
    make_plan(product=product, code="team")

    with pytest.raises(CodeTaken):
        make_product(code="atlas")
    with pytest.raises(CodeTaken):
        make_plan(product=product, code="team")
    assert make_plan(code="team")
    catalog.add_release(product=product, version="1.0", released_at=AT, by=BY, at=AT)
    with pytest.raises(CodeTaken):
        catalog.add_release(product=product, version="1.0", released_at=AT + DAY, by=BY, at=AT)


def test_it_numbers_revisions_and_takes_over_the_newest_terms_and_rights():
    plan = make_plan()
    first = make_revision(plan=plan, seat_limit=3, grants=[Grant(key="export"), API_CALLS])

    second = draft(plan, seat_limit=4)
    third = draft(plan, grants=[])

    assert (first.number, second.number, third.number) == (1, 2, 3)
    assert [str(each) for each in catalog.diff(first, second)] == ["seat limit: 3 → 4"]
    assert [each.key for each in second.entitlements.order_by("key")] == ["api", "export"]
    assert (third.seat_limit, third.entitlements.count()) == (4, 0)


@pytest.mark.parametrize(
    ("terms", "pointer"),
    [
        ({"colour": "red"}, "/colour"),
        ({"state": "published"}, "/state"),
        ({"number": 7}, "/number"),
        ({"validity_basis": "fixed_date"}, "/fixed_expires_at"),
        ({"fixed_expires_at": AT}, "/fixed_expires_at"),
        ({"validity_basis": "from_first_activation"}, "/duration"),
        ({"duration": timedelta()}, "/duration"),
        ({"duration": -DAY}, "/duration"),
        ({"grace_period": -DAY}, "/grace_period"),
        ({"maintenance": timedelta()}, "/maintenance"),
        ({"churn_window": timedelta()}, "/churn_window"),
        ({"seat_churn_limit": 1}, "/churn_window"),
        ({"activation_churn_limit": 1}, "/churn_window"),
        ({"lease_duration": timedelta()}, "/lease_duration"),
        ({"scheme": "wobbly"}, "/scheme"),
        ({"seat_kind": "wobbly"}, "/seat_kind"),
        ({"fingerprint_scope": "wobbly"}, "/fingerprint_scope"),
        ({"renewal_basis": "wobbly"}, "/renewal_basis"),
        ({"validity_basis": "wobbly"}, "/validity_basis"),
        ({"seat_limit": -1}, "/seat_limit"),
        ({"seat_limit": 2**31}, "/seat_limit"),
        ({"activation_limit": "many"}, "/activation_limit"),
        ({"scheme": None}, "/scheme"),
        ({"duration": 400_000 * DAY}, "/duration"),
        ({"churn_window": 4_000_000 * DAY, "seat_churn_limit": 1}, "/churn_window"),
    ],
)
def test_it_drafts_nothing_that_contradicts_itself(terms, pointer):
    plan = make_plan()
    good = draft(plan)

    with pytest.raises(Invalid) as drafting:
        draft(plan, **terms)
    with pytest.raises(Invalid) as editing:
        catalog.edit(revision=good, by=BY, at=AT, **terms)

    assert (drafting.value.pointer, editing.value.pointer) == (pointer, pointer)
    assert PlanRevision.objects.count() == 1


@pytest.mark.parametrize(
    ("grants", "pointer"),
    [
        ([Grant(key="a"), Grant(key="a")], "/entitlements/1/key"),
        ([Grant(key="a", kind="value")], "/entitlements/0/value"),
        ([Grant(key="a", value="1")], "/entitlements/0/value"),
        ([Grant(key="a", meter="calls")], "/entitlements/0/meter"),
        ([Grant(key="a", kind="allowance", meter="calls")], "/entitlements/0/amount"),
        ([Grant(key="a", kind="allowance", amount=Decimal(1))], "/entitlements/0/amount"),
        ([Grant(key="a", kind="allowance", meter="calls", amount=Decimal(-1))], "/entitlements/0/amount"),
        ([Grant(key="ok"), Grant(key="not a slug")], "/entitlements/1/key"),
        ([Grant(key="")], "/entitlements/0/key"),
        ([Grant(key="a", kind="wish")], "/entitlements/0/kind"),
        (
            [Grant(key="a", kind="allowance", meter="calls", amount=Decimal(1), overage="beg")],
            "/entitlements/0/overage",
        ),
        ([Grant(key="a", kind="allowance", meter="not a slug", amount=Decimal(1))], "/entitlements/0/meter"),
        ([Grant(key="a", kind="allowance", meter="calls", amount=Decimal("1e30"))], "/entitlements/0/amount"),
        ([Grant(key="a", kind="allowance", meter="calls", amount=Decimal("NaN"))], "/entitlements/0/amount"),
        ([Grant(key="a", kind="value", value="x" * 201)], "/entitlements/0/value"),
    ],
)
def test_it_grants_nothing_that_contradicts_itself(grants, pointer):
    with pytest.raises(Invalid) as refused:
        draft(grants=grants)

    assert refused.value.pointer == pointer
    assert not PlanRevision.objects.exists()


def test_it_has_the_database_refuse_an_allowance_without_an_amount():
    revision = draft(grants=[API_CALLS])

    with pytest.raises(DatabaseError), transaction.atomic():
        Entitlement.objects.filter(plan_revision=revision).update(amount=None)


def test_it_edits_a_draft_and_says_what_changed():
    revision = draft(seat_limit=3, grants=[Grant(key="export")])

    catalog.edit(revision=revision, by=BY, at=AT, seat_limit=4, grants=[Grant(key="cores", kind="value", value="8")])

    entry = AuditEntry.objects.get(action="plan_revision.edited")
    assert PlanRevision.objects.get(pk=revision.pk).seat_limit == 4
    assert entry.before == {"seat_limit": 3, "entitlements": {"export": "on"}}
    assert entry.after == {"seat_limit": 4, "entitlements": {"cores": "8"}}


def test_it_discards_a_draft_with_its_rights():
    revision = draft(grants=[Grant(key="export")])

    catalog.discard(revision=revision, by=BY, at=AT)

    assert not Entitlement.objects.exists()
    assert AuditEntry.objects.filter(action="plan_revision.discarded").count() == 1


# --- published --------------------------------------------------------------------------------------


def test_it_publishes_one_revision_of_a_plan_and_retires_the_one_before():
    plan = make_plan()
    first, second = make_revision(plan=plan), draft(plan)

    published = catalog.publish(revision=second, by=BY, at=AT + DAY)

    first.refresh_from_db()
    assert (first.state, first.retired_at) == ("retired", AT + DAY)
    assert (published.state, published.published_at) == ("published", AT + DAY)


@pytest.mark.parametrize("scheme", ["usage", "both"])
@pytest.mark.parametrize("grants", [[], [Grant(key="export")], [Grant(key="cores", kind="value", value="8")]])
def test_it_publishes_no_usage_without_an_allowance_to_count(scheme, grants):
    revision = draft(scheme=scheme, grants=grants)

    with pytest.raises(RevisionIsIncomplete):
        catalog.publish(revision=revision, by=BY, at=AT)

    assert PlanRevision.objects.get().state == "draft"


def test_it_never_changes_what_is_published_through_the_rules():
    published = make_revision(grants=[Grant(key="export")])
    retired = catalog.retire(revision=make_revision(), by=BY, at=AT)

    for revision in (published, retired):
        with pytest.raises(RevisionIsPublished):
            catalog.edit(revision=revision, by=BY, at=AT, seat_limit=999)
        with pytest.raises(RevisionIsPublished):
            catalog.publish(revision=revision, by=BY, at=AT)
        with pytest.raises(RevisionIsPublished):
            catalog.discard(revision=revision, by=BY, at=AT)
    with pytest.raises(Refused):
        catalog.retire(revision=retired, by=BY, at=AT)
    with pytest.raises(Refused):
        catalog.retire(revision=draft(), by=BY, at=AT)


def test_it_never_changes_what_is_published_past_the_rules():
    published = make_revision(grants=[Grant(key="export")])
    right = published.entitlements.get()

    def save_terms():
        published.seat_limit = 999
        published.save()

    def save_right():
        right.key = "import"
        right.save()

    attempts = [
        save_terms,
        save_right,
        lambda: PlanRevision.objects.filter(pk=published.pk).update(duration=None),
        lambda: PlanRevision.objects.bulk_update([published], ["seat_limit"]),
        lambda: published.entitlements.all().delete(),
        lambda: Entitlement.objects.create(plan_revision=published, created_at=AT, key="more", kind="flag"),
        lambda: Entitlement.objects.bulk_create(
            [Entitlement(plan_revision=published, created_at=AT, key="more", kind="flag")]
        ),
        lambda: PlanRevision.objects.filter(pk=published.pk)._raw_delete("default"),
    ]
    published.seat_limit = 999
    for attempt in attempts:
        with pytest.raises(DatabaseError), transaction.atomic():
            attempt()


def test_it_leaves_licenses_the_revision_they_have():
    plan = make_plan()
    license = make_license(plan_revision=make_revision(plan=plan, seat_limit=3))

    make_revision(plan=plan, seat_limit=1)

    license.refresh_from_db()
    assert (license.plan_revision.number, license.seat_limit) == (1, 3)


def test_it_sells_nothing_that_is_not_published():
    with pytest.raises(Refused):
        make_license(plan_revision=draft())
    with pytest.raises(Refused):
        make_license(plan_revision=catalog.retire(revision=make_revision(), by=BY, at=AT))
    with pytest.raises(LicenseNotUsable):
        lifecycle.renew(
            license=lifecycle.prepare(customer=make_license().customer, plan_revision=make_revision(), by=BY, at=AT),
            by=BY,
            at=AT,
        )


# --- words ------------------------------------------------------------------------------------------


def test_it_says_in_words_what_is_different():
    plan = make_plan()
    before = draft(
        plan,
        seat_limit=10,
        duration=365 * DAY,
        grants=[Grant(key="export"), Grant(key="cores", kind="value", value="8"), API_CALLS],
    )
    after = draft(
        plan,
        scheme="both",
        seat_limit=None,
        duration=None,
        seat_kind="floating",
        trial=True,
        grace_period=timedelta(days=7),
        maintenance=timedelta(days=30, hours=1),
        validity_basis="fixed_date",
        fixed_expires_at=AT,
        grants=[
            Grant(key="cores", kind="value", value="16"),
            Grant(key="api", kind="allowance", meter="calls", amount=Decimal("2000.500"), overage="refuse"),
            Grant(key="sso"),
        ],
    )

    said = [str(each) for each in catalog.diff(before, after)]

    assert said == [
        "scheme: Seats → seats and usage",
        "trial: no → yes",
        "seat kind: Named → Floating",
        "seat limit: 10 → no limit",
        "validity basis: from issue → until a fixed date",
        "duration: 365 days → perpetual",
        "fixed expires at: none → 2026-03-01 12:00 UTC",
        "grace period: none → 7 days",
        "maintenance: all versions → 30 days, 1:00:00",
        "entitlement api: 1000 calls per period, more is charged → 2000.5 calls per period, more is refused",
        "entitlement cores: 8 → 16",
        "entitlement export: on → none",
        "entitlement sso: none → on",
    ]


def test_it_finds_nothing_different_between_a_revision_and_itself():
    revision = make_revision(grants=[Grant(key="export"), API_CALLS])

    assert catalog.diff(revision, PlanRevision.objects.get(pk=revision.pk)) == []


def test_it_describes_a_plan_anew_and_writes_nothing_when_nothing_changes():
    plan = make_plan(name="Team", description="")

    catalog.describe(row=plan, name="Team", description="", by=BY, at=AT)
    catalog.describe(row=plan, name="Teams", description="", by=BY, at=AT)

    entry = AuditEntry.objects.get(action="plan.described")
    assert (entry.before, entry.after) == ({"name": "Team"}, {"name": "Teams"})
