"""The register of rules: nothing is flagged that is not in it, every rule has its vectors, thresholds are versioned."""

import ast
import re
from pathlib import Path

import pytest

from licensing import anomalies, rules
from licensing.errors import Invalid, Missing
from licensing.models import Anomaly, AuditEntry, RuleRevision
from licensing.rules import RuleChangedMeanwhile
from tests.factories import AT, make_actor, opened

ROOT = Path(__file__).resolve().parent.parent.parent
BY = make_actor()
CASES = [pytest.param(rule, case, id=f"{rule.id}: {case.why}") for rule in rules.every() for case in rule.cases]
JUDGED = [rule for rule in rules.every() if rule.kind == "job"]


@pytest.mark.parametrize(("rule", "case"), CASES)
def test_it_judges_as_its_vectors_say(rule, case):
    assert rule.judge(case.facts, rule.thresholds) is case.fires


@pytest.mark.parametrize("rule", rules.every(), ids=lambda rule: rule.id)
def test_it_says_what_it_is(rule):
    assert rule.says.endswith(".")
    assert rule.evidence
    assert rule.version >= 1
    assert len(rule.id) <= 64
    assert re.fullmatch(r"[a-z_]+", rule.id)
    if rule.kind == "job":
        assert {case.fires for case in rule.cases} == {True, False}
        assert rule.thresholds
        assert rule.id in {looked.id for looked, _ in rules.looks()}
        return
    assert rule.proved_by
    for proof in rule.proved_by:
        path, _, test = proof.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text() if test else (ROOT / path).is_file(), proof


@pytest.mark.parametrize("rule", JUDGED, ids=lambda rule: rule.id)
def test_each_of_its_thresholds_matters(rule):
    """Raising all of them silences a case that fires; what moves nothing is no threshold."""
    raised = dict.fromkeys(rule.thresholds, 1e9)

    assert not any(rule.judge(case.facts, raised) for case in rule.cases if case.fires)


def test_nothing_is_flagged_that_is_not_registered():
    """Every text given for `rule` to something that flags, anywhere in the product, names a registered rule."""
    known = {rule.id for rule in rules.every()}
    found = set()
    for app in ("licensing", "billing", "portal"):
        for path in sorted((ROOT / app).rglob("*.py")):
            for call in ast.walk(ast.parse(path.read_text())):
                if isinstance(call, ast.Call):
                    found |= {(path.name, name) for name in _rules_named(call)}

    assert len({name for _, name in found}) >= 25
    assert not {(path, name) for path, name in found if name not in known}


def _rules_named(call):
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if called in ("flag", "flag_later"):
        values = [keyword.value for keyword in call.keywords if keyword.arg == "rule"]
    elif called == "_flag" and call.args:
        values = call.args[:1]
    elif called == "_note" and len(call.args) == 5:
        values = call.args[3:4]
    else:
        return []
    return [value.value for value in values if isinstance(value, ast.Constant)]


@pytest.mark.django_db
def test_thresholds_are_changed_in_revisions_that_say_why():
    first = rules.change(
        rule="key_sharing", thresholds={"slack": 4, "share": 0.1}, hold=False, reason="Labs reinstall", by=BY, at=AT
    )
    second = rules.change(rule="key_sharing", thresholds={"slack": 1}, hold=True, reason="Sales", by=BY, at=AT, seen=1)

    now = rules.current("key_sharing")
    assert (first.number, first.thresholds, second.number) == (1, {"slack": 4}, 2)
    assert (now.number, now.thresholds, now.hold, now.reason) == (2, {"slack": 1, "share": 0.1}, True, "Sales")
    assert rules.all_current()["key_sharing"] == now
    assert rules.all_current()["seat_rotation"] == rules.current("seat_rotation")
    assert RuleRevision.objects.count() == 2
    entry = AuditEntry.objects.order_by("-id").first()
    assert (entry.action, entry.reason, opened(entry).actor_label) == ("rule.changed", "Sales", BY.label)
    assert entry.before == {"thresholds": {"slack": "4", "share": "0.1"}, "hold": False}
    assert entry.after["thresholds"] == {"slack": "1", "share": "0.1"}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": {"slak": 4}},
        {"thresholds": {"slack": -1}},
        {"thresholds": {"slack": float("nan")}},
        {"thresholds": {"slack": float("inf")}},
        {"thresholds": {"slack": True}},
        {"thresholds": {"slack": "4"}},
        {"reason": " "},
    ],
)
def test_thresholds_are_checked(wrong):
    with pytest.raises(Invalid):
        rules.change(
            **{"rule": "key_sharing", "thresholds": {}, "hold": False, "reason": "x", "by": BY, "at": AT} | wrong
        )

    assert not RuleRevision.objects.exists()
    assert not AuditEntry.objects.exists()


@pytest.mark.django_db
def test_there_are_no_thresholds_of_what_is_no_rule():
    with pytest.raises(Missing):
        rules.change(rule="no_such", thresholds={}, hold=False, reason="x", by=BY, at=AT)
    with pytest.raises(Missing):
        rules.current("no_such")


@pytest.mark.django_db
def test_a_change_seen_too_late_is_refused():
    rules.change(rule="key_sharing", thresholds={"slack": 4}, hold=False, reason="x", by=BY, at=AT, seen=0)

    with pytest.raises(RuleChangedMeanwhile):
        rules.change(rule="key_sharing", thresholds={"slack": 5}, hold=False, reason="x", by=BY, at=AT, seen=0)

    assert rules.current("key_sharing").thresholds["slack"] == 4


@pytest.mark.django_db
def test_an_anomaly_says_what_it_was_judged_by():
    rules.change(rule="key_sharing", thresholds={"slack": 4}, hold=False, reason="x", by=BY, at=AT)

    for rule in ("key_sharing", "job_failed"):
        anomalies.flag(rule=rule, severity="high", object_kind="x", object_id="1", at=AT, evidence={})

    shared, failed = Anomaly.objects.get(rule="key_sharing"), Anomaly.objects.get(rule="job_failed")
    assert (shared.rule_version, shared.revision, shared.thresholds) == (1, 1, {"slack": 4, "share": 0.1})
    assert (failed.rule_version, failed.revision, failed.thresholds) == (1, 0, {})
