"""The register of rules: what each is suspicious of, by which thresholds, and what it goes by right now.

A rule is judged at once where something is written, or by a job that looks every few seconds; either way nothing is
flagged that does not stand here. `version` says what the code of a rule means; its thresholds are people's, in
revisions that never change: an anomaly says by which of both it was found. Who looks where is `watching` and the apps
above; a judge is pure arithmetic over the facts it is given.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from django.db import transaction
from django.db.models import F, Window
from django.db.models.functions import RowNumber

from licensing import audit
from licensing.audit import Actor
from licensing.errors import Invalid, Missing, Refused
from licensing.models import RuleRevision
from licensing.states import Severity

Facts = Mapping[str, Any]
Thresholds = Mapping[str, float]
Judge = Callable[[Facts, Thresholds], bool]


class RuleChangedMeanwhile(Refused):
    """Somebody else changed this rule just now. Look at it again."""

    code = "rule_changed_meanwhile"


@dataclass(frozen=True, slots=True)
class Case:
    """One test vector: whether the rule, by its defaults, finds these facts suspicious, and why that is right."""

    fires: bool
    why: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `says` is what it means, `evidence` which rows an anomaly of it lists.

    A rule of kind "write" is judged where it happens: `proved_by` names the tests that see it fire and not fire. One of
    kind "job" has a `judge` and `cases`, and is looked after by whoever called `look_by`.
    """

    id: str
    says: str
    severity: Severity
    evidence: str
    kind: Literal["write", "job"] = "write"
    version: int = 1
    thresholds: Thresholds = field(default_factory=dict)
    judge: Judge | None = None
    cases: tuple[Case, ...] = ()
    proved_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """What a job found out about one object: the facts to judge, and the rows they were counted from."""

    object_kind: str
    object_id: str
    facts: Facts
    rows: list[dict[str, Any]]
    license_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Current:
    """What a rule goes by now: its defaults, and over them the newest revision (0: there is none)."""

    number: int
    thresholds: dict[str, float]
    hold: bool
    reason: str = ""
    since: datetime | None = None


Look = Callable[[datetime, datetime, Thresholds], Iterable[Subject]]
_rules: dict[str, Rule] = {}
_looks: dict[str, Look] = {}


def register(*rules: Rule) -> None:
    """Take rules into the register; apps above bring their own."""
    for rule in rules:
        _rules[rule.id] = rule


def look_by(rule: str, by: Look) -> None:
    """Have a job rule looked after by `by(at, since, thresholds)`, which yields what has changed since then."""
    _looks[rule] = by


def every() -> tuple[Rule, ...]:
    """Return all rules, by id."""
    return tuple(sorted(_rules.values(), key=lambda rule: rule.id))


def get(rule_id: str) -> Rule | None:
    """Return a rule, None where there is none of that id."""
    return _rules.get(rule_id)


def looks() -> Iterator[tuple[Rule, Look]]:
    """Return the rules that a job evaluates, with how it looks."""
    for rule in every():
        if rule.id in _looks:
            yield rule, _looks[rule.id]


def current(rule_id: str) -> Current:
    """Return what a rule goes by now. Raises `Missing` for a rule that is not registered."""
    rule = _rules.get(rule_id)
    if rule is None:
        raise Missing("There is no such rule.")
    return _over(rule, RuleRevision.objects.filter(rule=rule_id).order_by("-number").first())


def all_current() -> dict[str, Current]:
    """Return what every rule goes by now; one query."""
    newest = RuleRevision.objects.annotate(
        place=Window(RowNumber(), partition_by=F("rule"), order_by=F("number").desc())
    ).filter(place=1)
    found = {row.rule: row for row in newest}
    return {rule.id: _over(rule, found.get(rule.id)) for rule in every()}


def change(
    *, rule: str, thresholds: Thresholds, hold: bool, reason: str, by: Actor, at: datetime, seen: int | None = None
) -> RuleRevision:
    """Have a rule go by other thresholds from now on; what it was told before stays, and anomalies name it.

    `thresholds` are all that shall differ from the defaults; `hold` whether a license it suspects is held until a
    person lifts that; `seen` the revision the person looked at.

    Raises:
        Missing: there is no such rule.
        Invalid: a threshold it does not have or that is no number from 0 on, no reason, or a hold by a rule whose
            suspicion is not about licenses by their use.
        RuleChangedMeanwhile: there is a newer revision than the one seen.
    """
    known = _rules.get(rule)
    if known is None:
        raise Missing("There is no such rule.")
    if not reason.strip():
        raise Invalid("Say why.", pointer="/reason")
    chosen: dict[str, float] = {}
    for name, value in thresholds.items():
        if name not in known.thresholds:
            raise Invalid(f"This rule has no threshold '{name}'.", pointer=f"/thresholds/{name}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise Invalid("A threshold is a number from 0 on.", pointer=f"/thresholds/{name}")
        if value != known.thresholds[name]:
            chosen[name] = value
    with transaction.atomic():
        before = current(rule)
        if seen is not None and seen != before.number:
            raise RuleChangedMeanwhile()
        row, made = RuleRevision.objects.get_or_create(
            rule=rule,
            number=before.number + 1,
            defaults={"thresholds": chosen, "hold": hold, "reason": audit.plain({"": reason})[""], "created_at": at},
        )
        if not made:
            raise RuleChangedMeanwhile()
        audit.record(
            action="rule.changed",
            by=by,
            on=row,
            at=at,
            before={"thresholds": _said(before.thresholds), "hold": before.hold},
            after={
                "rule": rule,
                "number": row.number,
                "thresholds": _said({**known.thresholds, **chosen}),
                "hold": hold,
            },
            reason=reason,
        )
    return row


def _said(thresholds: Thresholds) -> dict[str, str]:
    return {name: f"{value:g}" for name, value in thresholds.items()}


def _over(rule: Rule, row: RuleRevision | None) -> Current:
    thresholds = dict(rule.thresholds)
    if row is None:
        return Current(0, thresholds, hold=False)
    thresholds |= {name: value for name, value in row.thresholds.items() if name in thresholds}
    return Current(row.number, thresholds, row.hold, row.reason, row.created_at)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a rule stands: when it last looked, and whether that was more than an hour ago."""

    rule: Rule
    current: Current
    ran_at: datetime | None
    looked_at: int
    failures: int
    last_error: str
    silent: bool


SILENT_AFTER = timedelta(hours=1)
OVERLAP = timedelta(seconds=30)  # looked at once more: what another process wrote late, or committed meanwhile
