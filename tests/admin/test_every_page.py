"""Every registered model: its list, its page, its history, its form; and no secret on any of them."""

from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

import billing.models
import licensing.models
from billing import accounts, changes, meters
from billing.models import (
    DunningHold,
    DunningStep,
    GatewayEvent,
    GatewayInvoice,
    LiveComparison,
    Payment,
    Reversal,
    Rollout,
    RolloutDifference,
    RolloutMember,
    Rollup,
    Statement,
    StatementLine,
    UsageChange,
    UsageEvent,
    UsageId,
)
from licensing import (
    activations,
    anomalies,
    catalog,
    chain,
    checkpoints,
    license_files,
    lifecycle,
    rules,
    seats,
    webhooks,
)
from licensing.models import (
    Activation,
    Anomaly,
    AuditEntry,
    AuditWaiting,
    Counter,
    CreditGrant,
    DecisionRecord,
    IdempotencyRecord,
    JobState,
    KeyCanary,
    License,
    LicenseKey,
    Observation,
    Person,
    Reminder,
    RequestNonce,
    Reservation,
    RingReader,
    RuleRun,
    WebhookDelivery,
)
from licensing.states import Severity
from portal.models import User
from tests.admin.conftest import adding, listing, page, sign_in, text_of
from tests.factories import (
    AT,
    BY,
    make_credential,
    make_customer,
    make_license,
    make_license_and_key,
    make_member,
    make_meter,
    make_price,
    make_revision,
)

pytestmark = pytest.mark.django_db

MODELS = sorted((model for model in admin.site._registry), key=lambda model: model._meta.label)
IDS = [model._meta.label for model in MODELS]


@pytest.fixture
def world() -> dict[str, str]:
    """One row of every model, and the secrets that must stand nowhere."""
    member = make_member()
    license, key = make_license_and_key(customer=member.customer)
    seats.assign(license=license, holder="ann@example.com", by=BY, at=AT)
    activations.activate(license=license, fingerprint="f" * 32, name="Ann's laptop", by=BY, at=AT)
    floating = make_license(customer=member.customer, seat_kind="floating")
    machine = activations.activate(license=floating, fingerprint="g" * 32, by=BY, at=AT).activation
    license_files.issue(license=floating, activation=machine, by=BY, at=AT)  # and with it a lease
    lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    catalog.add_release(product=license.product, version="1.0", released_at=AT, by=BY, at=AT)
    catalog.draft(plan=license.plan_revision.plan, by=BY, at=AT, grants=[catalog.Grant("export")])
    credential, secret = make_credential(customer=member.customer)
    anomalies.flag(
        rule="odd", severity=Severity.HIGH, object_kind="license", object_id=str(license.pk), at=AT,
        evidence={"count": 3, "nested": {"a": [1, 2]}}, license_id=license.pk,
    )  # fmt: skip
    rules.change(rule="key_sharing", thresholds={"slack": 4}, hold=False, reason="labs", by=BY, at=AT)
    DecisionRecord.objects.create(
        created_at=AT, request_id="request-1", at=AT, license_id=license.pk, caller="license:1", code="held",
        looked_at=["revoked", "held"],
    )  # fmt: skip
    IdempotencyRecord.objects.create(
        created_at=AT, principal="credential:1", key_digest=b"k" * 32, request_digest=b"r" * 32,
        sealed_answer="SEALED-ANSWER", expires_at=AT,
    )  # fmt: skip
    JobState.objects.create(name="expiration-sweep", last_finished_at=AT)
    Reminder.objects.create(created_at=AT, license=license, expires_at=AT, days=7)
    endpoint, hook_secret = webhooks.create(url="https://hooks.example.com/", customer=member.customer, by=BY, at=AT)
    message = webhooks.test(endpoint=endpoint, by=BY, at=AT)
    WebhookDelivery.objects.create(
        created_at=AT, endpoint=endpoint, message_id=message, event_type="webhook.test", attempt=1, at=AT, status=500,
        duration_ms=12, answer="Oops",
    )  # fmt: skip
    meter = make_meter(code="calls")
    price = make_price(plan=license.plan_revision.plan, components=[{"kind": "flat", "amount": "5.00"}])
    accounts.describe(customer=member.customer, currency="EUR", by=BY, at=AT)
    meters.draft(meter=meter.meter, by=BY, at=AT)
    statement = Statement.objects.create(
        created_at=AT, customer=member.customer, currency="EUR", starts_at=AT, ends_at=AT.replace(month=4)
    )
    StatementLine.objects.create(
        created_at=AT, statement=statement, position=1, kind="flat", license=license, price_revision=price,
        description="Flat", starts_at=AT, ends_at=AT.replace(month=4), amount_minor=500,
    )  # fmt: skip
    CreditGrant.objects.create(created_at=AT, license=license, meter="calls", amount=5, starts_at=AT)
    Reservation.objects.create(
        created_at=AT, license=license, meter="calls", counter_starts_at=AT, quantity=1, expires_at=AT
    )
    GatewayInvoice.objects.create(created_at=AT, statement=statement, days_until_due=14, next_at=AT)
    GatewayEvent.objects.create(created_at=AT, event_id="evt_1", kind="invoice.paid", occurred_at=AT, outcome="applied")
    Payment.objects.create(created_at=AT, statement=statement, source="by_hand", amount_minor=5, reference="1")
    Reversal.objects.create(created_at=AT, statement=statement, kind="refund", reference="re_1", returned_minor=5)
    DunningStep.objects.create(created_at=AT, statement=statement, days=3, act="reminder")
    DunningHold.objects.create(created_at=AT, statement=statement, license=license, hold=license.holds.get())
    changes.change(
        license=license, plan_revision=make_revision(plan=license.plan_revision.plan), by=BY, at=AT + timedelta(hours=1)
    )
    moving = Rollout.objects.create(
        created_at=AT, code="autumn", plan=license.plan_revision.plan, plan_revision=license.plan_revision, reason="x"
    )
    RolloutMember.objects.create(
        created_at=AT, rollout=moving, license=license, place=5, findings=[{"code": "no_price", "text": "None."}]
    )
    RolloutDifference.objects.create(
        created_at=AT, rollout=moving, license=license, kind="money", subject="2026-03", reason="Dearer."
    )
    Group.objects.create(name="Support")
    AccessAttempt.objects.create(
        username="ann@example.com", ip_address="192.0.2.1", path_info="/admin/login/", failures_since_start=6,
        get_data="", post_data="typed=PASSWORD-TYPED",
    )  # fmt: skip
    chain.turn(at=AT)
    checkpoints.make(at=AT, asked=True)
    row = LicenseKey.objects.get(license=license)
    return {
        "key": key,
        "sealed": row.sealed,
        "key digest": bytes(row.digest).hex(),
        "secret": secret,
        "secret digest": bytes(credential.digest).hex(),
        "sealed answer": "SEALED-ANSWER",
        "webhook secret": hook_secret,
        "sealed webhook secret": endpoint.sealed_secret,
        "typed password": "PASSWORD-TYPED",
    }


def first(model: Any) -> Any:
    row = model.objects.order_by("pk").first()
    assert row is not None, f"no {model._meta.label}"
    return row


def assert_no_secret(response: Any, secrets: dict[str, str]) -> None:
    text = text_of(response)
    assert [name for name, secret in secrets.items() if secret in text] == []


def test_all_models_are_registered() -> None:
    of_machines = {
        RequestNonce,
        KeyCanary,
        RingReader,
        UsageChange,
        AuditWaiting,
        Person,
        Observation,
        RuleRun,
        LiveComparison,
    }  # nothing a person could read anything from
    keyed_by_license = {Counter, UsageEvent, UsageId, Rollup}  # on the page of usage
    named = [(models, name) for models in (licensing.models, billing.models) for name in models.__all__]
    expected = {getattr(models, name) for models, name in named} | {User}
    expected -= of_machines | keyed_by_license

    assert expected <= set(admin.site._registry)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_list_opens_and_shows_no_secret(staff: Client, world: dict[str, str], model: Any) -> None:
    response = staff.get(listing(model))

    assert response.status_code == 200
    assert_no_secret(response, world)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_list_searches_for_a_word_and_an_id(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)

    assert staff.get(listing(model), {"q": "a word"}).status_code == 200
    found = staff.get(listing(model), {"q": str(row.pk)})

    assert found.status_code == 200
    if hasattr(row, "created_at"):
        assert [each.pk for each in found.context["cl"].result_list if each.pk == row.pk] == [row.pk]


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_every_filter_of_the_list_works(staff: Client, world: dict[str, str], model: Any) -> None:
    filters = staff.get(listing(model)).context["cl"].filter_specs

    for spec in filters:
        for choice in spec.choices(staff.get(listing(model)).context["cl"]):
            response = staff.get(listing(model) + choice["query_string"])
            assert response.status_code == 200, choice


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_page_opens_and_shows_no_secret(staff: Client, world: dict[str, str], model: Any) -> None:
    response = staff.get(page(first(model)))

    assert response.status_code == 200
    assert_no_secret(response, world)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_history_opens_and_shows_no_secret(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)
    response = staff.get(
        reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_history", args=[row.pk]), follow=True
    )

    assert response.status_code == 200
    assert_no_secret(response, world)


@pytest.mark.parametrize("model", [model for model in MODELS if hasattr(model, "history")], ids=lambda m: m._meta.label)
def test_history_version_opens_and_cannot_be_reverted_to(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)
    version = model.history.filter(id=row.pk).first()
    assert version is not None
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_simple_history", args=[row.pk, version.pk])

    shown = staff.get(url)
    posted = staff.post(url, {})

    assert shown.status_code == 200
    assert_no_secret(shown, world)
    assert "Revert" not in text_of(shown)
    assert posted.status_code == 403


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_nothing_is_deleted_here(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_delete", args=[row.pk])

    assert staff.get(url).status_code == 403
    assert staff.post(url, {"post": "yes"}).status_code == 403
    response = staff.post(listing(model), {"action": "delete_selected", "_selected_action": [row.pk]})

    assert response.status_code in (302, 403, 200)
    assert model.objects.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_add_form_opens_exactly_where_a_rule_makes_rows(staff: Client, world: dict[str, str], model: Any) -> None:
    makes = {
        "Customer", "Member", "Credential", "Product", "Release", "Plan", "PlanRevision", "License", "User", "Group",
        "Meter", "MeterRevision", "Price", "PriceRevision", "BillingAccount", "CreditGrant", "WebhookEndpoint",
    }  # fmt: skip

    response = staff.get(adding(model))

    assert response.status_code == (200 if model.__name__ in makes else 403)


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_staff_without_permissions_sees_nothing(world: dict[str, str], model: Any) -> None:
    client = sign_in()

    assert client.get(listing(model)).status_code == 403
    assert client.get(page(first(model))).status_code == 403
    assert client.get(adding(model)).status_code == 403


@pytest.mark.parametrize("model", MODELS, ids=IDS)
def test_a_customers_member_is_sent_to_the_login(world: dict[str, str], model: Any) -> None:
    client = sign_in(is_staff=False)

    assert client.get(listing(model)).status_code == 302


@pytest.mark.parametrize(
    "model", [AuditEntry, Activation, LicenseKey, License, JobState, Anomaly], ids=lambda m: m.__name__
)
def test_posting_a_readonly_page_changes_nothing(staff: Client, world: dict[str, str], model: Any) -> None:
    row = first(model)
    before = model.objects.filter(pk=row.pk).values().get()

    response = staff.post(page(row), {"action": "x", "reason": "x", "revision": 9, "state": "resolved"})

    assert response.status_code == 403
    assert model.objects.filter(pk=row.pk).values().get() == before


@pytest.mark.parametrize("name", ["License", "Seat", "Activation", "LicenseKey", "AuditEntry", "Hold", "Term"])
def test_a_full_page_of_a_list_takes_few_queries(staff: Client, name: str) -> None:
    model = apps.get_model("licensing", name)
    customer, revision = make_customer(), make_revision()
    for number in range(55):
        license, _ = lifecycle.issue(customer=customer, plan_revision=revision, by=BY, at=AT)
        if name in ("Seat", "Activation", "Hold"):
            seats.assign(license=license, holder=f"h{number}@example.com", by=BY, at=AT)
            activations.activate(license=license, fingerprint=f"{number:032d}", by=BY, at=AT)
            lifecycle.hold(license=license, reason="unpaid", by=BY, at=AT)
    staff.get(listing(model))

    with CaptureQueriesContext(
        connection,
    ) as queries:
        response = staff.get(listing(model))

    assert response.status_code == 200
    assert len(response.context["cl"].result_list) == 50
    assert len(queries) <= 25
    assert not [query for query in queries if "COUNT(*)" in query["sql"] and "LIMIT" not in query["sql"]]


def test_overview_shows_jobs_and_open_anomalies(staff: Client, world: dict[str, str]) -> None:
    text = text_of(staff.get(reverse("admin:index")))

    assert "outbox-relay" in text
    assert "overdue" in text
    assert "odd" in text


def test_job_page_shows_its_lag(staff: Client) -> None:
    lifecycle.issue(
        customer=make_customer(), plan_revision=make_revision(), by=BY, at=AT, expires_at=AT.replace(month=4)
    )
    job = JobState.objects.create(name="expiration-sweep", last_finished_at=AT)

    response = staff.get(page(job))

    assert "overdue" in text_of(response)
    assert " days " in text_of(response)
