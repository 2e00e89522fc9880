"""The rules that look by themselves: every few seconds at what has changed since, and then whom to tell.

One failing rule keeps no other from looking; what a rule has not looked at it looks at next time, and one that has not
looked for an hour says so. Alerts go out here, not where something is flagged: there may be no transaction there that
survives. Rules of apps above are looked after by them (`rules.look_by`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.db import DatabaseError, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, F, Max, Q

from licensing import alerts, anomalies, audit, keyformat, lifecycle, rules
from licensing.errors import Refused
from licensing.models import (
    Activation,
    Anomaly,
    AuditEntry,
    License,
    Observation,
    RuleRun,
    Seat,
)
from licensing.rules import Rule, Standing, Subject, Thresholds
from licensing.states import AnomalyState, HoldReason, SeatKind, Severity

log = structlog.get_logger(__name__)

ROWS = 50  # rows of evidence an anomaly lists
FURTHEST_BACK = timedelta(days=1)
ALERTS = 500

# Providers of mail for anybody: their domain says nothing of a company.
_PUBLIC = """
gmail.com googlemail.com outlook.com hotmail.com live.com msn.com yahoo.com ymail.com icloud.com me.com aol.com gmx.net
gmx.de gmx.com web.de t-online.de freenet.de mail.com mail.ru yandex.ru yandex.com proton.me protonmail.com pm.me
tutanota.com zoho.com fastmail.com qq.com 163.com 126.com orange.fr free.fr laposte.net libero.it seznam.cz wp.pl o2.pl
"""
PUBLIC_DOMAINS = frozenset(_PUBLIC.split())


def run(*, at: datetime, only: Iterable[str] = ()) -> tuple[int, int]:
    """Have every rule look once, then tell people; return how many suspicions and alerts there were, and how many rules
    failed."""
    done = failed = 0
    for rule, _ in rules.looks():
        if only and rule.id not in only:
            continue
        try:
            done += evaluate(rule, at=at)
        except Exception as error:  # the others look all the same
            failed += 1
            log.exception("rule_failed", rule=rule.id, error=type(error).__name__)
            said = keyformat.redact(f"{type(error).__name__}: {error}")[:2000]
            try:
                RuleRun.objects.get_or_create(rule=rule.id)
                RuleRun.objects.filter(rule=rule.id).update(failures=F("failures") + 1, last_error=said)
            except DatabaseError:
                log.error("rule_failure_not_kept", rule=rule.id)
            anomalies.flag(
                rule="rule_failed",
                severity=Severity.CRITICAL,
                object_kind="rule",
                object_id=rule.id,
                at=at,
                evidence={"error": type(error).__name__},
            )
    anomalies.wake(at=at)
    return done + alert(at=at), failed


def evaluate(rule: Rule, *, at: datetime) -> int:
    """Have one rule judge whatever has changed since it last looked; return how many suspicions it flagged."""
    assert rule.judge is not None
    look = {known.id: look for known, look in rules.looks()}[rule.id]
    state, _ = RuleRun.objects.get_or_create(rule=rule.id)
    since = max(state.ran_at or at - FURTHEST_BACK, at - 7 * FURTHEST_BACK) - rules.OVERLAP
    thresholds = rules.current(rule.id).thresholds
    flagged = looked_at = 0
    for subject in look(at, since, thresholds):
        looked_at += 1
        if not rule.judge(subject.facts, thresholds):
            continue
        flagged += 1
        anomalies.flag(
            rule=rule.id,
            severity=rule.severity,
            object_kind=subject.object_kind,
            object_id=subject.object_id,
            license_id=subject.license_id,
            at=at,
            evidence={**subject.facts, "rows": subject.rows[:ROWS]},
        )
    RuleRun.objects.filter(rule=rule.id).update(ran_at=at, looked_at=looked_at, last_error="")
    return flagged


def standings(*, at: datetime) -> list[Standing]:
    """Return how every rule stands; one that is judged where things are written is never silent."""
    runs = {row.rule: row for row in RuleRun.objects.all()}
    installed = MigrationRecorder.Migration.objects.filter(app="licensing").order_by("-applied")
    since = installed.values_list("applied", flat=True).first()
    current = rules.all_current()
    looking = {rule.id for rule, _ in rules.looks()}
    found = []
    for rule in rules.every():
        run = runs.get(rule.id)
        ran_at = run.ran_at if run else None
        last = ran_at or since
        found.append(
            Standing(
                rule=rule,
                current=current[rule.id],
                ran_at=ran_at,
                looked_at=run.looked_at if run else 0,
                failures=run.failures if run else 0,
                last_error=run.last_error if run else "",
                silent=rule.kind == "job"
                and (rule.id not in looking or last is None or at - last > rules.SILENT_AFTER),
            )
        )
    return found


# --- telling ----------------------------------------------------------------------------------------


def alert(*, at: datetime) -> int:
    """Tell people of the anomalies they were not told of, and hold licenses where a rule is told to; return how many.

    One whose rule and object are snoozed is recorded, and nobody is told.
    """
    waiting = list(Anomaly.objects.filter(alerted_at=None).order_by("id")[:ALERTS])
    if not waiting:
        return 0
    holding = {name for name, current in rules.all_current().items() if current.hold}
    done = 0
    for row in waiting:
        if row.rule in holding and row.license_id is not None:
            _hold(row, at)
        with transaction.atomic():
            if not Anomaly.objects.filter(pk=row.pk, alerted_at=None).update(alerted_at=at):
                continue  # another run was first
            if not _snoozed(row, at):
                alerts.announce(anomaly=row, at=at)
                done += 1
    return done


def _snoozed(row: Anomaly, at: datetime) -> bool:
    same = Anomaly.objects.filter(rule=row.rule, object_kind=row.object_kind, object_id=row.object_id)
    return same.filter(state=AnomalyState.SNOOZED, snoozed_until__gt=at).exists()


def _hold(row: Anomaly, at: datetime) -> None:
    """Hold the license an anomaly is about. What keeps it from being held keeps nobody from being told."""
    license = License.objects.filter(pk=row.license_id).first() if row.license_id else None
    if license is None:
        return
    try:
        lifecycle.hold(
            license=license,
            reason=HoldReason.ANOMALY,
            by=audit.system("anomaly-rules"),
            at=at,
            note=f"{row.rule}: anomaly {row.pk}",
        )
    except Refused:
        return  # held for it already, or nothing to hold any more
    except Exception as error:
        log.exception("hold_failed", anomaly=str(row.pk), error=type(error).__name__)
        anomalies.flag(
            rule="rule_failed",
            severity=Severity.CRITICAL,
            object_kind="anomaly",
            object_id=str(row.pk),
            license_id=row.license_id,
            at=at,
            evidence={"hold": row.rule, "error": type(error).__name__},
        )


# --- looking ----------------------------------------------------------------------------------------


def _seen(kind: str, since: datetime) -> list[str]:
    """Return the subjects that something was observed of since then."""
    rows = Observation.objects.filter(kind=kind, last_at__gte=since)
    return sorted(set(rows.values_list("subject", flat=True)))


def _observed(kind: str, subjects: list[str], after: datetime, until: datetime) -> dict[str, list[dict[str, Any]]]:
    """Return what was observed of these subjects within (after, until], by subject."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for some in _slices(subjects):
        rows = Observation.objects.filter(kind=kind, subject__in=some, last_at__gt=after, first_at__lte=until)
        columns = ("subject", "value", "slot_at", "first_at", "last_at", "count")
        for row in rows.order_by("subject", "last_at").values(*columns):
            found[row.pop("subject")].append(row)
    return found


def _slices(ids: list[Any], size: int = 500) -> Iterator[list[Any]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


def _limits(licenses: Iterable[str]) -> dict[str, int | None]:
    """Return how many machines (else seats) each of these licenses allows. Unknown ids are left out."""
    found: dict[str, int | None] = {}
    for some in _slices(sorted(licenses)):
        rows = License.objects.filter(pk__in=some).values_list("pk", "activation_limit", "seat_limit")
        for pk, machines, seats in rows:
            found[str(pk)] = machines if machines is not None else seats
    return found


def _rows(observed: list[dict[str, Any]], *, named: bool = True) -> list[dict[str, Any]]:
    """Return observations as an anomaly lists them, the newest first; one row a value."""
    merged: dict[str, dict[str, Any]] = {}
    for row in observed:
        known = merged.setdefault(row["value"], {**row, "count": 0})
        known["first_at"] = min(known["first_at"], row["first_at"])
        known["last_at"] = max(known["last_at"], row["last_at"])
        known["count"] += row["count"]
    newest = sorted(merged.values(), key=lambda row: row["last_at"], reverse=True)
    kept = ("value", "first_at", "last_at", "count") if named else ("first_at", "last_at", "count")
    return [{name: row[name] for name in kept} for row in newest]


def _of_license(license_id: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> Subject:
    return Subject("license", license_id, facts, rows, UUID(license_id))


def _key_sharing(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    seen = _seen("machine", since)
    limits = _limits(seen)
    for license_id, observed in _observed("machine", list(limits), at - timedelta(days=1), at).items():
        machines = len({row["value"] for row in observed})
        yield _of_license(license_id, {"machines": machines, "limit": limits[license_id]}, _rows(observed))


def _network_sharing(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    seen = _seen("network", since)
    limits = _limits(seen)
    begun = since.replace(minute=0, second=0, microsecond=0)  # hours before this one were judged before
    for license_id, observed in _observed("network", list(limits), begun - timedelta(microseconds=1), at).items():
        hours: dict[datetime, list[dict[str, Any]]] = defaultdict(list)
        for row in observed:
            hours[row["slot_at"]].append(row)
        busiest = max(hours, key=lambda hour: len(hours[hour]))
        facts = {"networks": len(hours[busiest]), "limit": limits[license_id], "hour": busiest}
        yield _of_license(license_id, facts, _rows(hours[busiest]))


def _activation_burst(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    window = timedelta(minutes=10)
    seen = _seen("attempt", since)
    limits = _limits(seen)
    for license_id, observed in _observed("attempt", list(limits), at - window, at).items():
        machines = len({row["value"] for row in observed})
        facts: dict[str, Any] = {"machines": machines, "limit": limits[license_id], "usual": 0}
        if machines > max(by["fewest"], limits[license_id] or 0):  # only then its history is worth reading
            facts["usual"] = _usual_attempts(license_id, at, by["percentile"])
        yield _of_license(license_id, facts, _rows(observed))


def _usual_attempts(license_id: str, at: datetime, percentile: float) -> int:
    """Return how many machines ask within ten minutes, when any do, in the percentile of 30 days before this hour."""
    windows: dict[int, set[str]] = defaultdict(set)
    rows = Observation.objects.filter(
        kind="attempt",
        subject=license_id,
        slot_at__gte=at - timedelta(days=30),
        slot_at__lt=at - timedelta(hours=1),
    )
    for slot_at, value in rows.values_list("slot_at", "value"):
        windows[int(slot_at.timestamp() // 600)].add(value)
    counts = sorted(len(values) for values in windows.values())
    return counts[min(int(len(counts) * percentile / 100), len(counts) - 1)] if counts else 0


def _seat_rotation(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    """A cycle is a seat released and one assigned, both within a day: as many as there are of the fewer."""
    day = timedelta(days=1)
    licenses = list(
        Seat.objects.filter(released_at__gte=since, released_at__lte=at).values_list("license_id", flat=True).distinct()
    )
    for some in _slices(licenses):
        within = Q(seats__released_at__gt=at - day, seats__released_at__lte=at)
        taken = Q(seats__assigned_at__gt=at - day, seats__assigned_at__lte=at)
        counted = License.objects.filter(pk__in=some, plan_revision__seat_kind=SeatKind.NAMED).annotate(
            released=Count("seats", filter=within), assigned=Count("seats", filter=taken)
        )
        for license in counted:
            facts = {"cycles": min(license.released, license.assigned), "limit": license.seat_limit}
            rows: list[dict[str, Any]] = []
            if min(license.released, license.assigned) > by["fewest"]:
                released = Seat.objects.filter(license=license, released_at__gt=at - day, released_at__lte=at)
                rows = [
                    {"seat": str(pk), "assigned_at": assigned_at, "released_at": released_at}
                    for pk, assigned_at, released_at in released.order_by("-released_at").values_list(
                        "pk", "assigned_at", "released_at"
                    )[:ROWS]
                ]
            yield _of_license(str(license.pk), facts, rows)


def _clock_tampering(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    told = Anomaly.objects.filter(rule="clock_turned_back", object_kind="activation", last_at__lte=at)
    for object_id in sorted(set(told.filter(last_at__gte=since).values_list("object_id", flat=True))):
        rows = list(told.filter(object_id=object_id, last_at__gt=at - timedelta(days=7)).order_by("-last_at"))
        facts = {"reports": sum(row.count for row in rows)}
        listed = [{"anomaly": str(row.pk), "last_at": row.last_at, "count": row.count} for row in rows]
        yield Subject("activation", object_id, facts, listed, rows[0].license_id if rows else None)


def _bad_signatures(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    after = at - timedelta(minutes=10)
    for object_id, observed in _observed("signature", _seen("signature", since), after, at).items():
        facts: dict[str, Any] = {"of": "activation", "failures": sum(row["count"] for row in observed)}
        machine = Activation.objects.filter(pk=object_id).values_list("license_id", flat=True).first()
        if machine is not None:
            yield Subject("activation", object_id, facts, _rows(observed), machine)
    for network, observed in _observed("signature_from", _seen("signature_from", since), after, at).items():
        facts = {"of": "network", "failures": sum(row["count"] for row in observed)}
        yield Subject("network", network, facts, _rows(observed))


def _key_enumeration(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    subjects = sorted({*_seen("unknown_key", since), *_seen("mistyped_key", since)})
    after = at - timedelta(minutes=10)
    unknown = _observed("unknown_key", subjects, after, at)
    mistyped = _observed("mistyped_key", subjects, after, at)
    for subject in subjects:
        tried = {
            "unknown": len({row["value"] for row in unknown.get(subject, [])}),
            "mistyped": len({row["value"] for row in mistyped.get(subject, [])}),
        }
        kind, _, name = subject.rpartition("credential:")
        rows = _rows([*unknown.get(subject, []), *mistyped.get(subject, [])], named=False)
        yield Subject("credential" if kind == "" and subject != name else "network", name, tried, rows)


def _use_after_revocation(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    seen = _seen("revoked", since)
    patience = timedelta(hours=by["after_hours"])
    revoked: dict[str, datetime] = {}
    for some in _slices(seen):
        rows = License.objects.filter(pk__in=some, revoked_at__lte=at - patience)
        revoked |= {str(pk): at_ for pk, at_ in rows.values_list("pk", "revoked_at") if at_}
    for license_id, observed in _observed("revoked", list(revoked), at - timedelta(days=1), at).items():
        late = [row for row in observed if row["first_at"] >= revoked[license_id] + patience]
        facts = {"machines": len({row["value"] for row in late}), "times": sum(row["count"] for row in late)}
        yield _of_license(license_id, {**facts, "revoked_at": revoked[license_id]}, _rows(late))


def _trial_abuse(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    year = at - timedelta(days=365)
    trials = License.objects.filter(plan_revision__trial=True, issued_at__lte=at, issued_at__gt=year)
    found: dict[UUID, set[UUID]] = {}

    def note(same: Any) -> None:
        several = list(same.order_by("issued_at", "pk").values_list("pk", flat=True).distinct())
        found.setdefault(several[-1], set()).update(several)  # the newest is the one too many

    for some in _slices(_seen("attempt", since)):
        for trial in trials.filter(pk__in=some):
            prints = list(Activation.objects.filter(license=trial).values_list("fingerprint", flat=True)[:1000])
            if prints:
                note(trials.filter(product=trial.product_id, activations__fingerprint__in=prints))
    for trial in trials.filter(issued_at__gte=since).select_related("customer"):
        domain = trial.customer.email.rpartition("@")[2].lower()
        own = Q(customer=trial.customer_id)
        if domain and domain not in PUBLIC_DOMAINS:
            own |= Q(customer__email__iendswith=f"@{domain}")
        note(trials.filter(own, product=trial.product_id))
    for trial_id, several in found.items():
        rows = [{"license": str(pk)} for pk in sorted(several)]
        yield _of_license(str(trial_id), {"trials": len(several)}, rows)


def _staff_misuse(at: datetime, since: datetime, by: Thresholds) -> Iterator[Subject]:
    hour = at - timedelta(hours=1)
    shown = AuditEntry.objects.filter(action="key.revealed", actor_kind="staff", at__gt=min(hour, since), at__lte=at)
    revealed = dict(
        shown.values("actor_id").annotate(last=Max("at")).filter(last__gte=since).values_list("actor_id", "last")
    )
    opened = _observed("opened", sorted({*_seen("opened", since), *revealed}), hour, at)
    for person in sorted({*revealed, *opened}):
        entries = list(shown.filter(actor_id=person, at__gt=hour).order_by("-at").values_list("pk", "object_id", "at"))
        customers = [row for row in opened.get(person, []) if row["last_at"] > hour]
        facts = {"reveals": len(entries), "opened": len({row["value"] for row in customers})}
        rows: list[dict[str, Any]] = [
            {"auditentry": str(pk), "license": license, "at": when} for pk, license, when in entries
        ]
        rows += [{"customer": row["value"], "last_at": row["last_at"]} for row in customers]
        yield Subject("user", person, facts, rows)


for _rule, _look in (
    ("key_sharing", _key_sharing),
    ("network_sharing", _network_sharing),
    ("activation_burst", _activation_burst),
    ("seat_rotation", _seat_rotation),
    ("clock_tampering", _clock_tampering),
    ("bad_signatures", _bad_signatures),
    ("key_enumeration", _key_enumeration),
    ("use_after_revocation", _use_after_revocation),
    ("trial_abuse", _trial_abuse),
    ("staff_misuse", _staff_misuse),
):
    rules.look_by(_rule, _look)
