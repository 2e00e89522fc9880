"""/anomalies: read only."""

from datetime import timedelta

from licensing import anomalies, rules
from licensing.models import Anomaly
from tests.api.conftest import MISSING_ID, Api, World, assert_problem
from tests.factories import AT, BY


def test_it_shows_what_looked_wrong(world: World, api: Api) -> None:
    shown = api.get(f"/anomalies/{world.anomaly.pk}").json()

    assert set(shown) == {
        *("id", "created_at", "rule", "severity", "object_kind", "object_id", "license"),
        *("state", "count", "first_at", "last_at", "evidence", "resolution", "resolved_at"),
        *("snoozed_until", "alerted_at", "rule_version", "revision", "thresholds"),
    }
    assert (shown["rule"], shown["severity"], shown["state"]) == ("tests", "low", "open")
    assert shown["license"] == str(world.license.pk)
    assert shown["evidence"] == {"seen": 1}


def test_it_filters_by_license_rule_severity_and_state(world: World, api: Api) -> None:
    for query, found in (
        (f"license={world.license.pk}", 1),
        (f"license={world.other_license.pk}", 0),
        ("rule=tests&severity=low&state=open", 1),
        ("severity=critical", 0),
        ("state=resolved", 0),
    ):
        assert len(api.get(f"/anomalies?{query}").json()["results"]) == found, query


def test_it_has_none_that_is_not_there(api: Api) -> None:
    assert_problem(api.get(f"/anomalies/{MISSING_ID}"), 404, "not_found")


def test_it_takes_none(world: World, api: Api) -> None:
    assert_problem(api.post("/anomalies", {"rule": "x"}), 405, "method_not_allowed")
    assert_problem(api.delete(f"/anomalies/{world.anomaly.pk}"), 405, "method_not_allowed")


def test_it_says_by_which_thresholds_it_was_judged_and_until_when_it_is_snoozed(world: World, api: Api) -> None:
    rules.change(rule="key_sharing", thresholds={"slack": 4}, hold=False, reason="labs", by=BY, at=AT)
    anomalies.flag(rule="key_sharing", severity="high", object_kind="x", object_id="1", at=AT, evidence={"rows": []})
    row = Anomaly.objects.get(rule="key_sharing")
    anomalies.snooze(anomaly=row, until=AT + timedelta(days=2), by=BY, at=AT)

    shown = api.get(f"/anomalies/{row.pk}").json()

    assert (shown["rule_version"], shown["revision"], shown["thresholds"]) == (1, 1, {"slack": 4.0, "share": 0.1})
    assert (shown["state"], shown["snoozed_until"]) == ("snoozed", "2026-03-03T12:00:00Z")
    assert len(api.get("/anomalies?state=snoozed").json()["results"]) == 1
