"""The rules look at what was really asked and done: each through its own door, and people are told within a minute."""

from datetime import timedelta

import pytest
from django.core import mail

from licensing import activations, alerts, anomalies, keys, lifecycle, observations, rules, seats, sweeps, watching
from licensing.models import Anomaly, AuditEntry, Hold, OutboxMessage, RuleRun
from licensing.rules.register import _looks
from tests.factories import AT, BY, make_actor, make_customer, make_license, make_revision, make_user

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def look(at, *only):
    observations.flush()
    _, failed = watching.run(at=at, only=only)
    assert failed == 0
    return list(Anomaly.objects.order_by("id"))


def print_of(number):
    return f"fingerprint-{number:05}"


def test_key_sharing_by_fingerprints_tried_within_24_hours():
    license = make_license(activation_limit=5)
    for number in range(7):
        observations.used(str(license.pk), print_of(number), "192.0.2.1", AT + number * HOUR)

    assert not look(AT + 7 * HOUR)
    observations.used(str(license.pk), print_of(8), "192.0.2.1", AT + 8 * HOUR)
    (found,) = look(AT + 8 * HOUR)

    assert (found.rule, found.severity, found.license_id) == ("key_sharing", "high", license.pk)
    assert found.evidence["machines"] == 8
    assert found.evidence["rows"][0]["value"] == print_of(8)
    assert found.evidence["rows"][0]["last_at"].startswith("2026-03-01T20:00")
    assert len(found.evidence["rows"]) == 8


def test_machines_of_the_day_before_yesterday_do_not_count():
    license = make_license(activation_limit=5)
    for number in range(12):
        observations.used(str(license.pk), print_of(number), None, AT + number * 5 * HOUR)
        assert not look(AT + number * 5 * HOUR)


def test_network_sharing_within_one_hour_not_on_the_way():
    license, other = make_license(activation_limit=2), make_license(activation_limit=2)
    for number in range(9):
        observations.used(str(license.pk), print_of(0), f"10.{number}.0.1", AT + number * MINUTE)
        observations.used(str(other.pk), print_of(0), f"10.{number}.0.1", AT + number * 20 * MINUTE)

    (found,) = look(AT + 3 * HOUR)

    assert (found.rule, found.license_id, found.evidence["networks"]) == ("network_sharing", license.pk, 9)


def test_activation_burst_counts_those_refused_too():
    license = make_license(activation_limit=2)
    for number in range(11):
        try:
            activations.activate(license=license, fingerprint=print_of(number), by=BY, at=AT + number * SECOND)
        except activations.ActivationLimitReached:
            continue

    found = {row.rule: row for row in look(AT + MINUTE)}

    assert found.keys() == {"activation_burst", "key_sharing"}
    assert found["activation_burst"].evidence["machines"] == 11


def test_a_farm_that_always_starts_many_at_once_is_no_burst():
    license = make_license(activation_limit=None)
    for day in range(5):
        for number in range(20):
            observations.note("attempt", str(license.pk), f"{day}-{number}", AT - day * DAY)
        observations.flush()

    assert not look(AT + MINUTE)
    for number in range(101):
        observations.note("attempt", str(license.pk), f"x-{number}", AT + 2 * MINUTE)
    (found,) = look(AT + 3 * MINUTE)

    assert (found.rule, found.evidence["usual"]) == ("activation_burst", 20)


def test_seat_rotation_counts_cycles():
    license = make_license(seat_limit=1)
    at = AT
    for number in range(7):
        seat = seats.assign(license=license, holder=f"p{number}@example.com", by=BY, at=at).seat
        at += HOUR
        if number < 6:
            seats.release(seat=seat, by=BY, at=at)
        if number < 5:
            assert not look(at)

    (found,) = look(at)

    assert (found.rule, found.evidence["cycles"]) == ("seat_rotation", 6)
    assert len(found.evidence["rows"]) == 6


def test_clock_tampering_is_the_third_time_in_a_week():
    license = make_license()
    machine = activations.activate(license=license, fingerprint=print_of(1), by=BY, at=AT).activation
    for day in (0, 3, 6):
        activations.heartbeat(activation=machine, at=AT + day * DAY, clock_turned_back=True)
        found = look(AT + day * DAY, "clock_tampering")

    assert [row.rule for row in found] == [*["clock_turned_back"] * 3, "clock_tampering"]
    assert (found[-1].object_id, found[-1].evidence["reports"]) == (str(machine.pk), 3)
    assert found[-1].evidence["rows"][0]["anomaly"] == str(found[2].pk)


def test_bad_signatures_by_machine_and_by_network():
    license = make_license()
    machine = activations.activate(license=license, fingerprint=print_of(1), by=BY, at=AT).activation
    for number in range(5):
        observations.note("signature", str(machine.pk), "192.0.2.0/24", AT + number * SECOND)
    for number in range(50):
        observations.note("signature_from", "198.51.100.0/24", f"keyid-{number}", AT + number * SECOND)

    found = {row.object_kind: row for row in look(AT + MINUTE)}

    assert found.keys() == {"activation", "network"}
    assert (found["activation"].license_id, found["activation"].evidence["failures"]) == (license.pk, 5)
    assert found["network"].object_id == "198.51.100.0/24"
    assert not look(AT + 20 * MINUTE)[2:]


def test_key_enumeration_counts_different_keys():
    for _ in range(30):
        observations.note("unknown_key", "192.0.2.0/24", "replaced", AT)
    for number in range(3):
        observations.note("unknown_key", "198.51.100.0/24", str(number), AT)
        observations.note("unknown_key", "credential:abc", str(number), AT)
    for number in range(20):
        observations.note("mistyped_key", "203.0.113.0/24", str(number), AT)

    found = look(AT + MINUTE)

    assert {(row.object_kind, row.object_id) for row in found} == {
        ("network", "198.51.100.0/24"),
        ("credential", "abc"),
        ("network", "203.0.113.0/24"),
    }
    assert not any("value" in line for row in found for line in row.evidence["rows"])


def test_use_after_revocation_once_a_day_has_passed():
    license = make_license()
    lifecycle.revoke(license=license, by=BY, at=AT, reason="fraud")
    for hours in (1, 23, 25):
        for number in range(2):
            observations.note("revoked", str(license.pk), print_of(number), AT + hours * HOUR)
        found = look(AT + hours * HOUR + MINUTE)
        assert len(found) == (hours == 25)

    assert (found[0].rule, found[0].evidence["machines"], found[0].evidence["times"]) == ("use_after_revocation", 2, 2)


def test_trial_abuse_by_machine_and_by_mail_domain():
    terms = make_revision(trial=True, duration=30 * DAY)

    def trial(email, at):
        return make_license(customer=make_customer(email=email), plan_revision=terms, at=at)

    first, second = trial("a@gmail.com", AT), trial("b@gmail.com", AT + DAY)
    activations.activate(license=first, fingerprint=print_of(1), by=BY, at=AT + DAY)
    assert not look(AT + DAY)
    activations.activate(license=second, fingerprint=print_of(1), by=BY, at=AT + DAY + MINUTE)
    (by_machine,) = look(AT + DAY + 2 * MINUTE)
    trial("it@acme.example", AT + 2 * DAY)
    third = trial("sales@ACME.example", AT + 3 * DAY)
    found = look(AT + 3 * DAY + MINUTE, "trial_abuse")

    assert (by_machine.rule, by_machine.license_id) == ("trial_abuse", second.pk)
    assert {line["license"] for line in by_machine.evidence["rows"]} == {str(first.pk), str(second.pk)}
    assert third.pk in {row.license_id for row in found}


def test_staff_misuse_by_reveals_and_by_customers_opened():
    support, sales = make_actor(id="7"), make_actor(id="8")
    license = make_license()
    for number in range(11):
        keys.reveal(license=license, by=support, at=AT + number * MINUTE, reason="asked")
    for number in range(31):
        observations.note("opened", sales.id, str(number), AT + number * MINUTE)

    assert not look(AT + 8 * MINUTE)
    found = {row.object_id: row for row in look(AT + 31 * MINUTE)}

    assert (found["7"].evidence["reveals"], found["8"].evidence["opened"]) == (11, 31)
    assert AuditEntry.objects.filter(pk=found["7"].evidence["rows"][0]["auditentry"]).exists()


# --- telling ----------------------------------------------------------------------------------------


def flagged(at=AT, **overrides):
    anomalies.flag(
        **{"rule": "key_sharing", "severity": "high", "object_kind": "license", "object_id": "1", "at": at}
        | {"evidence": {"machines": 7, "rows": []}}
        | overrides
    )
    return Anomaly.objects.order_by("-id").first()


def subscriber(email):
    from django.contrib.auth.models import Permission

    user = make_user(email=email, is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="receive_alerts"))
    return user


def test_people_are_told_by_mail_within_a_minute(settings):
    settings.ALERT_EMAILS = ["ops@example.com"]
    subscriber("duty@example.com")
    make_user(email="other@example.com", is_staff=True)
    license = make_license(activation_limit=1)
    for number in range(4):
        observations.used(str(license.pk), print_of(number), None, AT)

    observations.flush()
    sweeps.run(sweeps.RULES, at=AT + 20 * SECOND)
    sweeps.run(sweeps.OUTBOX, at=AT + 30 * SECOND)

    row = Anomaly.objects.get()
    assert row.alerted_at == AT + 20 * SECOND
    assert sorted(message.to[0] for message in mail.outbox) == ["duty@example.com", "ops@example.com"]
    assert mail.outbox[0].subject == "Anomaly (high): key_sharing"
    assert f"/admin/licensing/anomaly/{row.pk}/change/" in mail.outbox[0].body
    assert "machines: 4" in mail.outbox[0].body
    assert str(license.customer) in mail.outbox[0].body


def test_it_alerts_once_per_rule_object_and_hour():
    for minutes in (0, 1, 59, 60):
        flagged(AT + minutes * MINUTE)
        watching.alert(at=AT + minutes * MINUTE)

    assert [row.count for row in Anomaly.objects.order_by("id")] == [3, 1]
    assert OutboxMessage.objects.filter(kind=alerts.KIND).count() == 2


def test_other_ways_are_told_by_a_message_of_their_own(monkeypatch):
    monkeypatch.setattr(alerts, "_kinds", [alerts.KIND])
    alerts.also("webhook.test")
    alerts.also("webhook.test")

    row = flagged()
    watching.alert(at=AT)

    sent = OutboxMessage.objects.order_by("id").values_list("kind", "payload")
    payload = {"event": "anomaly.flagged", "anomaly": str(row.pk), "rule": "key_sharing"}
    assert list(sent) == [(alerts.KIND, payload), ("webhook.test", payload)]


def test_what_is_snoozed_alerts_nobody_until_it_wakes():
    row = flagged()
    watching.alert(at=AT)
    anomalies.snooze(anomaly=row, until=AT + 3 * HOUR, by=BY, at=AT, reason="they move offices")

    quiet = flagged(AT + 2 * HOUR)
    other = flagged(AT + 2 * HOUR, object_id="2")
    assert watching.alert(at=AT + 2 * HOUR) == 1
    watching.run(at=AT + 3 * HOUR)
    row.refresh_from_db()

    assert (row.state, row.snoozed_until) == ("open", None)
    assert OutboxMessage.objects.filter(payload__anomaly=str(other.pk)).exists()
    assert not OutboxMessage.objects.filter(payload__anomaly=str(quiet.pk)).exists()
    flagged(AT + 4 * HOUR)
    assert watching.alert(at=AT + 4 * HOUR) == 1
    assert [entry.action for entry in AuditEntry.objects.order_by("id")][-2:] == ["anomaly.snoozed", "anomaly.woken"]


def test_a_rule_holds_a_license_only_when_told_to():
    license = make_license()
    flagged(license_id=license.pk)
    watching.alert(at=AT)
    assert not Hold.objects.exists()

    rules.change(rule="key_sharing", thresholds={}, hold=True, reason="as agreed", by=BY, at=AT)
    row = flagged(AT + HOUR, license_id=license.pk)
    flagged(AT + HOUR, rule="seat_rotation", license_id=make_license().pk)
    watching.alert(at=AT + HOUR)
    flagged(AT + 2 * HOUR, license_id=license.pk)
    assert watching.alert(at=AT + 2 * HOUR) == 1

    placed = Hold.objects.get()
    assert (placed.license_id, placed.reason, placed.note) == (license.pk, "anomaly", f"key_sharing: anomaly {row.pk}")
    lifecycle.lift(license=license, reason="anomaly", by=make_actor(), at=AT + 3 * HOUR)


def test_a_hold_that_cannot_be_placed_is_said_and_people_are_told_all_the_same(monkeypatch):
    def broken(**_):
        raise OSError("disk full")

    monkeypatch.setattr(lifecycle, "hold", broken)
    rules.change(rule="key_sharing", thresholds={}, hold=True, reason="as agreed", by=BY, at=AT)
    row = flagged(AT, license_id=make_license().pk)

    assert watching.alert(at=AT) >= 1

    said = Anomaly.objects.get(rule="rule_failed")
    assert (said.object_id, said.evidence) == (str(row.pk), {"hold": "key_sharing", "error": "OSError"})


# --- standing ---------------------------------------------------------------------------------------


def test_a_rule_that_has_not_looked_for_an_hour_is_silent():
    watching.run(at=AT)

    assert not [one.rule.id for one in watching.standings(at=AT + HOUR) if one.silent]
    silent = [one.rule.id for one in watching.standings(at=AT + HOUR + SECOND) if one.silent]
    assert set(silent) == {rule.id for rule in rules.every() if rule.kind == "job"}


def test_one_that_fails_says_so_and_keeps_no_other_from_looking(monkeypatch):
    def broken(at, since, by):
        raise OSError("disk full")

    monkeypatch.setitem(_looks, "key_sharing", broken)

    _, failed = watching.run(at=AT)

    assert failed == 1
    assert RuleRun.objects.get(rule="key_sharing").last_error == "OSError: disk full"
    assert RuleRun.objects.get(rule="key_sharing").ran_at is None
    assert RuleRun.objects.get(rule="trial_abuse").ran_at == AT
    assert Anomaly.objects.get().rule == "rule_failed"


def test_it_judges_by_the_thresholds_of_now():
    license = make_license(activation_limit=5)
    for number in range(8):
        observations.used(str(license.pk), print_of(number), None, AT)
    rules.change(rule="key_sharing", thresholds={"slack": 3}, hold=False, reason="labs", by=BY, at=AT)

    assert not look(AT)
    rules.change(rule="key_sharing", thresholds={"slack": 2}, hold=False, reason="no labs", by=BY, at=AT)
    (found,) = look(AT + SECOND)

    assert (found.revision, found.thresholds["slack"]) == (2, 2)
