"""Rules from the staff admin: how each stands, its thresholds, and changing them with a reason."""

from datetime import timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from licensing import anomalies, observations, rules, watching
from licensing.models import Anomaly, AuditEntry, RuleRevision, RuleRun
from tests.admin.conftest import act, last_entry, listing, page, sign_in, text_of
from tests.factories import AT, BY, make_license, opened

pytestmark = pytest.mark.django_db
RULE = reverse("admin:rule", args=["key_sharing"])


def given(**overrides: str) -> dict[str, str]:
    return {"slack": "4", "share": "0.2", "hold": "no", "reason": "Labs reinstall", "seen": "0"} | overrides


def test_it_lists_every_rule_with_when_it_last_looked(staff: Client) -> None:
    watching.run(at=timezone.now())
    RuleRun.objects.filter(rule="seat_rotation").update(ran_at=timezone.now() - timedelta(hours=2))

    shown = text_of(staff.get(reverse("admin:rules")))

    for rule in rules.every():
        assert reverse("admin:rule", args=[rule.id]) in shown
    assert "Not running for more than an hour: seat_rotation." in " ".join(shown.split())


def test_it_changes_thresholds_with_a_reason(staff: Client) -> None:
    response = staff.post(RULE, given(hold="yes"))

    assert response.headers["Location"] == RULE
    now = rules.current("key_sharing")
    assert (now.number, now.thresholds, now.hold, now.reason) == (1, {"slack": 4, "share": 0.2}, True, "Labs reinstall")
    entry = last_entry()
    assert (entry.action, entry.reason) == ("rule.changed", "Labs reinstall")
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]
    assert "revision 1: Labs reinstall" in text_of(staff.get(RULE))


@pytest.mark.parametrize(
    "wrong", [{"slack": "-1"}, {"slack": "many"}, {"slack": "nan"}, {"reason": " "}, {"seen": "5"}, {"hold": "maybe"}]
)
def test_it_refuses_what_is_no_threshold(staff: Client, wrong: dict[str, str]) -> None:
    assert staff.post(RULE, given(**wrong)).status_code == 422

    assert not RuleRevision.objects.exists()


def test_it_needs_the_right_to_change_and_to_look(staff: Client) -> None:
    looking, nobody = sign_in("licensing.view_anomaly"), sign_in("licensing.view_license")
    before = AuditEntry.objects.count()

    assert looking.get(RULE).status_code == 200
    assert "Change the rule" not in text_of(looking.get(RULE))
    assert looking.post(RULE, given()).status_code == 403
    assert nobody.get(RULE).status_code == 403
    assert nobody.get(reverse("admin:rules")).status_code == 403
    assert Client().get(RULE).status_code == 302
    assert staff.get(reverse("admin:rule", args=["no_such"])).status_code == 404
    assert AuditEntry.objects.count() == before


def test_an_anomaly_shows_its_evidence_with_links(staff: Client) -> None:
    license = make_license(seat_limit=1)
    anomalies.flag(
        rule="trial_abuse", severity="medium", object_kind="license", object_id=str(license.pk), at=AT,
        license_id=license.pk, evidence={"trials": 2, "rows": [{"license": str(license.pk), "last_at": AT}]},
    )  # fmt: skip

    shown = text_of(staff.get(page(Anomaly.objects.get())))

    assert reverse("admin:rule", args=["trial_abuse"]) in shown
    assert shown.count(page(license)) >= 2
    assert "2026-03-01 12:00" in shown
    assert "tries out the same product" in shown


def test_it_is_snoozed_for_a_while(staff: Client) -> None:
    anomalies.flag(rule="key_sharing", severity="high", object_kind="x", object_id="1", at=AT, evidence={})
    row = Anomaly.objects.get()

    too_long = staff.post(act(row, "snooze"), {"span": "91 days", "reason": "x"})
    response = staff.post(act(row, "snooze"), {"span": "2 weeks", "reason": "They move offices"})

    assert too_long.status_code == 422
    assert response.headers["Location"] == page(row)
    row.refresh_from_db()
    assert row.state == "snoozed"
    assert row.snoozed_until is not None
    assert timedelta(days=13) < row.snoozed_until - timezone.now() <= timedelta(days=14)
    assert last_entry().reason == "They move offices"


def test_open_ones_stand_first_the_gravest_on_top(staff: Client) -> None:
    for number, (severity, state) in enumerate(
        [("low", "open"), ("critical", "resolved"), ("medium", "open"), ("critical", "open"), ("high", "acknowledged")]
    ):
        anomalies.flag(
            rule=f"r{number}", severity=severity, object_kind="x", object_id=f"{state}-{severity}", at=AT, evidence={}
        )
        row = Anomaly.objects.order_by("-id")[0]
        if state == "resolved":
            anomalies.resolve(anomaly=row, resolution="x", by=BY, at=AT)
        if state == "acknowledged":
            anomalies.acknowledge(anomaly=row, by=BY, at=AT)

    shown = text_of(staff.get(listing(Anomaly)))

    order = ["open-critical", "open-medium", "open-low", "acknowledged-high", "resolved-critical"]
    assert sorted(order, key=shown.index) == order


def test_it_is_noted_whose_customers_pages_are_opened(staff: Client) -> None:
    license = make_license()
    observations.clear()

    staff.get(page(license))
    staff.get(page(license.customer))
    staff.get(page(make_license()))
    staff.get(reverse("admin:rules"))

    me = str(staff.user.pk)  # type: ignore[attr-defined]
    noted = [key for key in observations._waiting if key[0] == "opened"]
    assert len(noted) == 2
    assert {(subject) for _, subject, _, _ in noted} == {me}
