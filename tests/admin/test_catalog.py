"""Products, plans, releases and revisions from the staff admin."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client

from licensing import catalog
from licensing.models import AuditEntry, Plan, PlanRevision, Product, Release
from tests.admin.conftest import act, adding, last_entry, page, sign_in, text_of
from tests.factories import AT, BY, make_plan, make_product, make_revision

pytestmark = pytest.mark.django_db

LINES = {"entitlements-TOTAL_FORMS": "0", "entitlements-INITIAL_FORMS": "0"}
TERMS = {
    "scheme": "seats", "seat_kind": "named", "seat_limit": "7", "activation_limit": "", "fingerprint_scope": "license",
    "outage_policy": "strict", "outage_tolerance": "1 day", "lease_duration": "10 minutes", "offline_period": "30 days",
    "validity_basis": "from_issue", "duration": "1 year", "renewal_basis": "from_expiry", "grace_period": "2 weeks",
    "fixed_expires_at_0": "", "fixed_expires_at_1": "",
}  # fmt: skip


def line(number: int, **values: str) -> dict[str, str]:
    defaults = {"id": "", "key": "", "kind": "flag", "value": "", "meter": "", "amount": "", "overage": "refuse"}
    return {f"entitlements-{number}-{name}": value for name, value in (defaults | values).items()}


def test_makes_and_describes_a_product(staff: Client) -> None:
    staff.post(adding(Product), {"code": "cad", "name": "CAD", "description": ""})
    product = Product.objects.get()
    created = last_entry()
    staff.post(page(product), {"code": "other", "name": "CAD 2", "description": "Draws"})

    product.refresh_from_db()
    assert (product.code, product.name, product.description) == ("cad", "CAD 2", "Draws")
    assert created.action == "product.created"
    assert last_entry().action == "product.described"
    assert last_entry().actor_label == staff.user.email  # type: ignore[attr-defined]


def test_a_taken_code_is_said(staff: Client) -> None:
    make_product(code="cad")

    response = staff.post(adding(Product), {"code": "cad", "name": "CAD"})

    assert response.status_code == 200
    assert "already exists" in text_of(response)


def test_makes_a_plan_and_a_release(staff: Client) -> None:
    product = make_product()

    staff.post(adding(Plan), {"product": product.pk, "code": "pro", "name": "Pro", "description": ""})
    assert last_entry().action == "plan.created"
    staff.post(adding(Release), {
        "product": product.pk, "version": "2.0", "released_at_0": "2026-01-01", "released_at_1": "00:00",
    })  # fmt: skip
    assert last_entry().action == "release.added"

    again = staff.post(adding(Release), {
        "product": product.pk, "version": "2.0", "released_at_0": "2026-01-01", "released_at_1": "00:00",
    })  # fmt: skip
    assert again.status_code == 200
    assert Release.objects.count() == Plan.objects.count() == 1


def test_drafts_from_the_plans_page(staff: Client) -> None:
    offered = make_revision(seat_limit=4)

    response = staff.post(act(offered.plan, "draft"))

    draft = PlanRevision.objects.get(state="draft")
    assert response.headers["Location"] == page(draft)
    assert (draft.number, draft.seat_limit) == (2, 4)
    assert last_entry().action == "plan_revision.drafted"


def test_edits_a_drafts_terms_and_entitlements(staff: Client) -> None:
    draft = make_revision(publish=False, grants=[catalog.Grant("old")])
    [old] = draft.entitlements.all()
    lines = {
        "entitlements-TOTAL_FORMS": "3",
        "entitlements-INITIAL_FORMS": "1",
        **line(0, id=str(old.pk), key="old", DELETE="on"),
        **line(1, key="export"),
        **line(2, key="renders", kind="allowance", meter="render", amount="100", overage="charge"),
    }

    response = staff.post(page(draft), TERMS | {"duration": "365 days"} | lines)

    assert response.status_code == 302, response.context["errors"]
    draft.refresh_from_db()
    assert (draft.seat_limit, draft.activation_limit) == (7, None)
    assert (draft.duration, draft.grace_period) == (timedelta(days=365), timedelta(days=14))
    assert {each.key: each.amount for each in draft.entitlements.all()} == {"export": None, "renders": Decimal(100)}
    assert last_entry().action == "plan_revision.edited"
    assert last_entry().before["seat_limit"] == 10


def test_what_the_catalog_refuses_is_said_and_nothing_changes(staff: Client) -> None:
    draft = make_revision(publish=False)
    lines = {"entitlements-TOTAL_FORMS": "1", "entitlements-INITIAL_FORMS": "0", **line(0, key="tier", kind="value")}

    contradiction = staff.post(page(draft), TERMS | {"duration": "1 day", "seat_churn_limit": "3"} | LINES)
    meaningless = staff.post(page(draft), TERMS | {"duration": "1 day"} | lines)

    assert "A churn limit needs the window it counts in." in text_of(contradiction)
    assert "A fixed value needs its value." in text_of(meaningless)
    draft.refresh_from_db()
    assert draft.seat_limit == 10
    assert not AuditEntry.objects.filter(action="plan_revision.edited").exists()


def test_publishes_a_revision_and_shows_what_differs(staff: Client) -> None:
    offered = make_revision(seat_limit=4)
    draft = catalog.draft(plan=offered.plan, by=BY, at=AT, seat_limit=9)

    shown = text_of(staff.get(page(draft)))
    response = staff.post(act(draft, "publish"), {"reason": "New prices"})

    assert "Different from" in shown
    assert "<strong>9</strong>" in shown
    assert response.status_code == 302
    draft.refresh_from_db()
    offered.refresh_from_db()
    assert (draft.state, offered.state) == ("published", "retired")
    entry = last_entry()
    assert (entry.action, entry.reason, entry.object_id) == ("plan_revision.published", "New prices", str(draft.pk))


def test_publishing_twice_is_refused(staff: Client) -> None:
    offered = make_revision()

    response = staff.post(act(offered, "publish"), {})

    assert response.status_code == 422
    assert "never changes" in text_of(response)


def test_a_published_revision_has_no_form(staff: Client) -> None:
    offered = make_revision(grants=[catalog.Grant("export")])

    assert 'name="seat_limit"' not in text_of(staff.get(page(offered)))
    assert staff.post(page(offered), TERMS | LINES).status_code == 403
    offered.refresh_from_db()
    assert offered.seat_limit == 10


def test_retires_a_revision(staff: Client) -> None:
    offered = make_revision()

    staff.post(act(offered, "retire"), {"reason": "Gone"})

    offered.refresh_from_db()
    assert offered.state == "retired"
    assert (last_entry().action, last_entry().reason) == ("plan_revision.retired", "Gone")
    assert staff.post(act(offered, "retire"), {"reason": "Gone"}).status_code == 422


def test_discards_a_draft_and_never_a_published_one(staff: Client) -> None:
    draft, offered = make_revision(publish=False), make_revision()

    assert staff.post(act(draft, "discard")).status_code == 302
    assert staff.post(act(offered, "discard")).status_code == 422
    assert list(PlanRevision.objects.all()) == [offered]
    assert last_entry().action == "plan_revision.discarded"


@pytest.mark.parametrize("name", ["publish", "retire", "discard"])
def test_needs_the_permission(name: str) -> None:
    draft = make_revision(publish=False)
    client = sign_in("licensing.view_planrevision", "licensing.add_planrevision")

    assert client.get(act(draft, name)).status_code == 403
    assert client.post(act(draft, name), {"reason": "x"}).status_code == 403
    assert act(draft, name) not in text_of(client.get(page(draft)))
    draft.refresh_from_db()
    assert draft.state == "draft"


@pytest.mark.parametrize("make", [make_product, make_plan])
def test_viewing_does_not_allow_describing(make: Any) -> None:
    row = make()
    client = sign_in(f"licensing.view_{row._meta.model_name}")

    assert client.get(page(row)).status_code == 200
    assert client.post(page(row), {"name": "Mine", "description": ""}).status_code == 403
    assert client.get(adding(type(row))).status_code == 403
