"""What is held about a person is all exported and all erased, but for what a law keeps; no field escapes."""

import io
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from allauth.account.models import EmailAddress
from axes.models import AccessLog
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection, models
from django.utils import timezone

from licensing import activations, chain, customers, seats, switches, verifying
from licensing.models import AuditEntry, Member, Person, Seat
from portal import privacy
from tests.factories import AT, BY, make_actor, make_license, make_member, make_user, opened

pytestmark = pytest.mark.django_db
MAIL = "ada@example.com"

# Fields that can hold words and hold nobody's data: codes, ids, our own words, keys and figures, what a person of the
# vendor wrote as a reason or of a product (docs/privacy.md asks them to name nobody), and what an organization is.
HARMLESS = {
    "portal.User": "password",
    "billing.Meter": "code name description",
    "billing.MeterRevision": "unit dimensions filters unique_by",
    "billing.Price": "currency",
    "billing.PriceRevision": "components",
    "billing.BillingAccount": "currency tax_id gateway_customer",
    "billing.Statement": "currency void_reason gateway_invoice",
    "billing.StatementLine": "meter description reason",
    "billing.GatewayInvoice": "external_id url last_error",
    "billing.GatewayEvent": "event_id kind object_id",
    "billing.Payment": "reference reason",
    "billing.Reversal": "reference status",
    "billing.Rollout": "code reason",
    "billing.RolloutMember": "findings",
    "billing.RolloutDifference": "subject before after reason",
    "billing.LiveComparison": "used",
    "billing.UsageId": "event_id",
    "billing.UsageEvent": "event_id dimensions source reason",
    "billing.Rollup": "group",
    "licensing.Product": "code name description",
    "licensing.Release": "version",
    "licensing.Plan": "code name description",
    "licensing.Entitlement": "key value meter",
    "licensing.Customer": "code name",
    "licensing.License": "terms_kid terms_mac",
    "licensing.Hold": "note",
    "licensing.Term": "reason",
    "licensing.SchemeChange": "reason actor_kind actor_id actor_role refusal before after",
    "licensing.Activation": "fingerprint platform public_key key_thumbprint",
    "licensing.RequestNonce": "nonce",
    "licensing.Counter": "meter",
    "licensing.CreditGrant": "meter reason",
    "licensing.Reservation": "meter event_id holder",
    "licensing.Anomaly": "rule object_kind object_id evidence resolution thresholds",
    "licensing.RuleRevision": "rule thresholds reason",
    "licensing.RuleRun": "rule last_error",
    "licensing.Observation": "kind subject value",
    "licensing.AuditEntry": (
        "action actor_kind actor_id actor_role object_kind object_id before after reason request_id"
    ),
    "licensing.AuditLink": "content_hash chain_hash",
    "licensing.AuditCheckpoint": "head kid signature",
    "licensing.Credential": "name digest_kid last4 scopes allowed_addresses",
    "licensing.IdempotencyRecord": "principal key_digest request_digest",
    "licensing.DecisionRecord": "request_id caller code looked_at",
    "licensing.KeyCanary": "kid purpose value",
    "licensing.RingReader": "process kids",
    "licensing.LicenseKey": "digest_kid last5",
    "licensing.Lease": "fingerprint",
    "licensing.LicenseFile": "kid",
    "licensing.OutboxMessage": "kind target payload last_error",
    "licensing.Person": "digest_kid user",
    "licensing.JobState": "name last_error run_key finished_key",
    "licensing.WebhookEndpoint": "url description event_types disabled_reason",
    "licensing.WebhookDelivery": "event_type answer error",
}
WORDS = (models.CharField, models.TextField, models.JSONField, models.GenericIPAddressField, models.BinaryField)
OURS = [
    model for model in apps.get_models() if model._meta.app_label in {"portal", "billing", "licensing"}
    and not model.__name__.startswith("Historical")
]  # fmt: skip


@pytest.mark.parametrize("model", OURS, ids=lambda model: model.__name__)
def test_every_field_that_can_hold_words_is_said_to_be_personal_or_not(model: Any) -> None:
    """A new field fails here: name it in `PERSONAL` of its model and in `privacy.HELD`, or above if it is nobody's."""
    able = {f.name for f in model._meta.concrete_fields if isinstance(f, WORDS) and not f.choices}
    harmless = set(HARMLESS.get(model._meta.label, "").split())
    said = {*getattr(model, "PERSONAL", ()), *getattr(model, "SECRET", ())}

    assert able - said == harmless


def test_it_says_of_every_personal_field_what_becomes_of_it() -> None:
    named = {f"{model._meta.label}.{name}" for model in OURS for name in getattr(model, "PERSONAL", ())}

    assert named == set(privacy.HELD)


@pytest.fixture
def ada() -> dict[str, Any]:
    """A person who is everywhere: account, member, holder, contact, actor."""
    license = make_license()
    customers.change(customer=license.customer, name="Acme", email=MAIL, by=BY, at=AT)
    user = make_user(email=MAIL, first_name="Ada", last_name="Lovelace")
    make_member(customer=license.customer, role="owner")
    member = make_member(customer=license.customer, user=user, role="owner")
    actor = make_actor(kind="member", id=str(user.pk), label=MAIL, role="owner", address="192.0.2.9")
    former = seats.assign(license=license, holder=MAIL, by=actor, at=AT).seat
    activations.activate(license=license, fingerprint="f" * 16, name="Ada's laptop", seat_holder=MAIL, by=actor, at=AT)
    seats.release(seat=former, by=actor, at=AT)
    seats.assign(license=license, holder=MAIL, by=actor, at=AT)
    switches.schedule(
        license=license, plan_revision=license.plan_revision, starts_at=AT + timedelta(days=1), by=actor, at=AT
    )
    EmailAddress.objects.create(user=user, email=MAIL)
    AccessLog.objects.create(username=MAIL, ip_address="192.0.2.9", user_agent="b", path_info="/")
    return {"license": license, "user": user, "member": member, "actor": actor}


def run(*command: str) -> str:
    out = io.StringIO()
    call_command("privacy", *command, stdout=out)
    return out.getvalue()


def mentions(*words: str) -> list[str]:
    """Return every table in which one of these words still stands, histories and packages' tables too."""
    found = []
    for model in apps.get_models(include_auto_created=True):
        with connection.cursor() as cursor:
            cursor.execute(f'SELECT * FROM "{model._meta.db_table}"')
            text = " ".join(str(bytes(v) if isinstance(v, memoryview) else v) for row in cursor.fetchall() for v in row)
        found += [f"{model._meta.label}: {word}" for word in words if word.lower() in text.lower()]
    return found


def test_erasing_leaves_nothing_of_a_person_in_any_table_and_the_chain_whole(ada: dict[str, Any]) -> None:
    entry = AuditEntry.objects.filter(action="seat.assigned").earliest("id")
    assert opened(entry).actor_label == MAIL
    assert mentions(MAIL)

    said = run("erase", MAIL, "--reason", "Asked on 1 March", "--release-seats")

    assert mentions(MAIL, "Lovelace", "192.0.2.9", "Ada's") == []
    assert "Erased: 2 seats" in said
    assert opened(AuditEntry.objects.get(pk=entry.pk)).actor_label == "erased"
    record = AuditEntry.objects.get(action="person.erased")
    assert (record.reason, record.after["seats"]) == ("Asked on 1 March", 2)
    ada["user"].refresh_from_db()
    assert (ada["user"].is_active, ada["user"].has_usable_password()) == (False, False)
    ada["license"].refresh_from_db()
    assert (ada["license"].seats_used, Seat.objects.filter(released_at=None).count()) == (0, 0)
    chain.turn(at=timezone.now())
    assert verifying.verify(at=timezone.now()).good

    size = AuditEntry.objects.count()
    assert "Nothing is held" in run("erase", MAIL, "--reason", "again")
    assert AuditEntry.objects.count() == size


def test_a_rehearsal_says_the_same_and_changes_nothing(ada: dict[str, Any]) -> None:
    before = mentions(MAIL, "Lovelace", "192.0.2.9", "Ada's")

    said = run("erase", MAIL, "--dry-run", "--release-seats")

    assert mentions(MAIL, "Lovelace", "192.0.2.9", "Ada's") == before
    done = run("erase", MAIL, "--release-seats", "--reason", "r")
    assert said.splitlines() == [line.replace("Erased", "Would erase") for line in done.splitlines()[:-1]]


def test_it_refuses_while_somebody_should_have_something_first(ada: dict[str, Any]) -> None:
    other = Member.objects.exclude(user=ada["user"]).get()
    customers.remove_member(member=other, by=BY, at=AT)
    ada["user"].is_staff = True
    ada["user"].save()

    with pytest.raises(CommandError, match=r"staff.*live seats.*only owner"):
        run("erase", MAIL, "--reason", "r")
    with pytest.raises(CommandError, match="cannot be erased"):
        run("erase", MAIL, "--dry-run")
    with pytest.raises(CommandError, match="Say why"):
        run("erase", MAIL)

    ada["user"].is_staff = False
    ada["user"].save()
    run("erase", MAIL, "--reason", "r", "--release-seats", "--leave-no-owner")
    assert mentions(MAIL) == []
    assert Member.objects.get().user_id == ada["user"].pk


def test_an_export_holds_what_is_held_and_is_on_record(ada: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "ada.json"

    run("export", MAIL.upper(), "--json", str(file))

    said = json.loads(file.read_text())
    assert (file.stat().st_mode & 0o777, said["mail"], said["account"]["last_name"]) == (0o600, MAIL, "Lovelace")
    assert [len(said[name]) for name in ("memberships", "seats", "machines", "contact_of", "sign_ins")] == [
        1,
        2,
        1,
        1,
        1,
    ]
    done = [entry for entry in said["audit_entries"] if entry["actor_label"] == MAIL]
    assert {"seat.assigned", "activation.created", "seat.released"} <= {entry["action"] for entry in done}
    assert {entry["address"] for entry in done} == {"192.0.2.9"}
    assert AuditEntry.objects.filter(action="person.exported").count() == 1
    with pytest.raises(CommandError, match="File exists"):
        run("export", MAIL, "--json", str(file))


def test_of_nobody_it_says_nothing_and_keeps_nothing() -> None:
    said = json.loads(run("export", "nobody@example.com"))

    assert not any(value for name, value in said.items() if name not in ("mail", "made_at"))
    assert not Person.objects.exists()
    with pytest.raises(CommandError):
        run("export", "no address")


def test_it_says_which_entries_from_before_stay(ada: dict[str, Any]) -> None:
    AuditEntry.objects.create(
        created_at=AT,
        at=AT,
        action="t",
        actor_kind="staff",
        actor_id="1",
        actor_label=MAIL,
        object_kind="x",
        object_id="1",
    )

    assert "Kept: 1 audit entries from before" in run("erase", MAIL, "--reason", "r", "--release-seats")
