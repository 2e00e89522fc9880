"""Replay a generated population through the rules and count what they found: python -m tests.anomalies.measure

Observations go through `licensing.observations`, signed requests through `licensing.nonces`, trials through
`activations`; seats, usage and events are rows as the product leaves them. The rules themselves then look, hour by
hour, those about ten minutes minute by minute.

What is counted: an episode of a cause is found when its rule flags its object in that time; a day on which a rule flags
an object without a cause of that rule within the last day is a false alarm.

Thresholds were fixed on seeds below 100. What stands in docs/anomalies.md is of the seeds in FINAL, run after that.
"""

import argparse
import logging
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from tests.anomalies.generator import DAY, HOUR, LOOK_ALIKES, MINUTE, START, Episode, World, make

ROOT = Path(__file__).resolve().parent.parent.parent
FINAL = (101, 102, 103)
ROUNDS = 4
NAMESPACE = UUID("6f0f6a0e-0d5b-4d5e-9a55-0f1f3f5a8f01")
QUICK = ("activation_burst", "bad_signatures", "key_enumeration", "clock_tampering")
TAIL = DAY  # a rule that looks a day back may still speak of yesterday's cause


@dataclass(slots=True)
class Score:
    """What a rule made of its episodes, and of everything else."""

    episodes: int = 0
    found: int = 0
    days: int = 0  # flagged days with a cause
    false: int = 0  # flagged days without
    missed_in: Counter[str] = field(default_factory=Counter)
    false_in: Counter[str] = field(default_factory=Counter)

    @property
    def precision(self) -> float:
        return self.days / (self.days + self.false) if self.days + self.false else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.episodes if self.episodes else 1.0


@dataclass(slots=True)
class Result:
    license_days: int = 0
    licenses: int = 0
    benign: int = 0
    scores: dict[str, Score] = field(default_factory=lambda: defaultdict(Score))
    confusion: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # scenario: rule: days
    lived: Counter[str] = field(default_factory=Counter)  # scenario: its days


def id_of(name: str) -> UUID:
    return uuid5(NAMESPACE, name)


def replay(world: World) -> Result:
    """Put the population into the (empty) database, replay it, and return what the rules made of it."""
    machines = _put(world)
    _feed(world, machines)
    return _judge(world, machines)


def _put(world: World) -> dict[str, UUID]:
    """Make the rows of the licenses; return the activation of each that has one."""
    from billing.models import Rollup, UsageEvent, UsageId
    from licensing.models import Activation, AuditEntry, Customer, License, Seat
    from tests.factories import make_meter, make_plan, make_product, make_revision

    product, second = make_product(), make_product()
    plain = make_revision(plan=make_plan(product=product))
    trials = [make_revision(plan=make_plan(product=each), trial=True) for each in (product, second)]
    meter = make_meter()
    customers, licenses, activations, seats, rollups, events, ids = [], [], [], [], [], [], []
    for one in world.licenses:
        pk = id_of(one.id)
        customers.append(
            Customer(id=pk, code=one.id[:64].lower().replace("_", "-"), name=one.id, email=one.mail, created_at=START)
        )
        revision = trials[one.product] if one.trial else plain
        licenses.append(
            License(
                id=pk,
                customer_id=pk,
                product=revision.plan.product,
                plan_revision=revision,
                scheme="seats",
                created_at=one.issued_at,
                updated_at=one.issued_at,
                issued_at=one.issued_at,
                starts_at=one.issued_at,
                first_activated_at=one.issued_at,
                revoked_at=one.revoked_at,
                seat_limit=one.limit,
                seats_ceiling=one.limit,
                activation_limit=one.limit,
                activations_ceiling=one.limit,
            )
        )
        if not one.trial:
            activations.append(
                Activation(
                    id=id_of(f"{one.id} machine"),
                    created_at=START,
                    license_id=pk,
                    scope=pk,
                    fingerprint=f"fingerprint-{one.id}",
                    activated_at=one.issued_at,
                    last_seen_at=one.issued_at,
                )
            )
        seats += [
            Seat(
                license_id=pk,
                holder=f"h{number}@{one.id}.example",
                state="released",
                created_at=begun,
                assigned_at=begun,
                released_at=ended,
            )
            for number, (begun, ended) in enumerate(one.seats)
        ]
        rollups += [
            Rollup(license_id=pk, meter_revision=meter, window="hour", starts_at=hour, quantity=amount, events=1)
            for hour, amount in one.usage.items()
        ]
        days = {at.replace(hour=0, minute=0, second=0, microsecond=0) for _, at, _ in one.events}
        rollups += [
            Rollup(license_id=pk, meter_revision=meter, window="day", starts_at=day, quantity=1, events=1)
            for day in days
        ]
        for number, occurred, received in one.events:
            same = {"license_id": pk, "event_id": str(number), "occurred_at": occurred, "received_at": received}
            events.append(
                UsageEvent(**same, meter_revision=meter, quantity=1, sequence=number, source=f"activation:{pk}")
            )
            ids.append(UsageId(**same, digest=b"x" * 16))
    for model, rows in (
        (Customer, customers),
        (License, licenses),
        (Activation, activations),
        (Seat, seats),
        (Rollup, rollups),
        (UsageEvent, events),
        (UsageId, ids),
    ):
        model.objects.bulk_create(rows, batch_size=1000)  # type: ignore[attr-defined]
    AuditEntry.objects.bulk_create(
        AuditEntry(
            created_at=at,
            at=at,
            action="key.revealed",
            actor_kind="staff",
            actor_id=person,
            object_kind="license",
            object_id="x",
        )
        for at, person in world.reveals
    )
    return {one.id: id_of(f"{one.id} machine") for one in world.licenses if not one.trial}


def _feed(world: World, machines: dict[str, UUID]) -> None:
    from licensing import observations, watching
    from licensing.models import Activation
    from licensing.rules import looks

    slow = [rule.id for rule, _ in looks() if rule.id not in QUICK]
    validating: dict[datetime, list[UUID]] = defaultdict(list)
    for one in world.licenses:
        for hour in one.validates:
            validating[hour].append(id_of(f"{one.id} machine"))
    seen, place = world.seen, 0
    observations.clear()
    for number in range(world.days * 24):
        hour = START + number * HOUR
        quick_until: datetime | None = None
        while place < len(seen) and seen[place].at < hour + HOUR:
            one = seen[place]
            if quick_until is not None and one.at >= quick_until:
                observations.flush()
                watching.run(at=quick_until, only=QUICK)
                quick_until = None
            if _happen(one, machines) and quick_until is None:
                quick_until = one.at.replace(second=0, microsecond=0) + MINUTE
            place += 1
        observations.flush()
        if quick_until is not None:
            watching.run(at=quick_until, only=QUICK)
        Activation.objects.filter(pk__in=validating[hour]).update(last_seen_at=hour + 50 * MINUTE)
        watching.run(at=hour + 59 * MINUTE + timedelta(seconds=59), only=slow)


def _happen(one: Any, machines: dict[str, UUID]) -> bool:
    """Have one thing happen; return whether a rule about minutes should look soon."""
    from licensing import activations, nonces, observations
    from licensing.errors import LicensingError
    from licensing.models import Activation, License
    from tests.factories import BY

    subject = str(id_of(one.subject))
    match one.kind:
        case "used":
            fingerprint, _, address = one.value.partition(" ")
            observations.used(subject, fingerprint, address, one.at)
            return False
        case "clock":
            activations.heartbeat(
                activation=Activation.objects.select_related("license").get(pk=machines[one.subject]),
                at=one.at,
                clock_turned_back=True,
            )
            return True
        case "signed":
            try:
                nonces.accept(
                    activation_id=machines[one.subject],
                    nonce=f"nonce-{one.at.timestamp():.6f}-0000",
                    counter=int(one.value),
                    at=one.at,
                )
            except LicensingError:
                pass
            return False
        case "activate":
            license = License.objects.get(pk=id_of(one.subject))
            activations.activate(license=license, fingerprint=one.value, by=BY, at=one.at)
            return True
        case "attempt":
            observations.note("attempt", subject, one.value, one.at)
            return True
        case "signature":
            observations.note("signature", str(machines[one.subject]), one.value, one.at)
            observations.note("signature_from", one.value, str(machines[one.subject]), one.at)
            return True
        case "unknown_key" | "mistyped_key":
            observations.note(one.kind, one.subject, one.value, one.at)
            return True
        case "opened":
            observations.note(one.kind, one.subject, one.value, one.at)
            return False
    observations.note(one.kind, subject, one.value, one.at)
    return False


def _judge(world: World, machines: dict[str, UUID]) -> Result:
    from licensing.models import Anomaly

    result = Result()
    result.licenses = len(world.licenses)
    result.license_days = len(world.licenses) * world.days
    result.benign = sum(one.benign for one in world.licenses)
    names = {str(id_of(one.id)): one.id for one in world.licenses} | {str(pk): name for name, pk in machines.items()}
    names |= world.known_as
    for scenario in world.scenario_of.values():
        result.lived[scenario] += world.days
    flagged: dict[str, set[tuple[str, datetime]]] = defaultdict(set)
    measured = {one.rule for one in world.episodes}
    for row in Anomaly.objects.filter(rule__in=measured):
        subject = names.get(row.object_id, row.object_id)
        flagged[row.rule].add((subject, row.first_at))
    causes: dict[tuple[str, str], list[Episode]] = defaultdict(list)
    for episode in world.episodes:
        causes[episode.rule, episode.subject].append(episode)
    for rule in sorted(measured):
        score = result.scores[rule]
        for (of, subject), episodes in causes.items():
            for episode in episodes if of == rule else ():
                score.episodes += 1
                inside = (one for name, one in flagged[rule] if name == subject)
                if any(episode.start <= one < episode.end + HOUR for one in inside):
                    score.found += 1
                    result.confusion[episode.scenario][rule] += 0
                else:
                    score.missed_in[episode.scenario] += 1
        for subject, day in sorted({(name, _day(one)) for name, one in flagged[rule]}):
            times = [one for name, one in flagged[rule] if name == subject and _day(one) == day]
            explained = [
                any(each.start <= one < each.end + TAIL for each in causes.get((rule, subject), ())) for one in times
            ]
            scenario = world.scenario_of.get(subject, "nobody of ours")
            result.confusion[scenario][rule] += 1
            if all(explained):
                score.days += 1
            else:
                score.false += 1
                score.false_in[scenario] += 1
    return result


def _day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def merged(results: list[Result]) -> Result:
    whole = Result()
    for one in results:
        whole.license_days += one.license_days
        whole.licenses += one.licenses
        whole.benign += one.benign
        whole.lived += one.lived
        for rule, score in one.scores.items():
            known = whole.scores[rule]
            for name in ("episodes", "found", "days", "false"):
                setattr(known, name, getattr(known, name) + getattr(score, name))
            known.missed_in += score.missed_in
            known.false_in += score.false_in
        for scenario, counts in one.confusion.items():
            whole.confusion[scenario] += counts
    return whole


def latencies(count: int, seed: int) -> list[float]:
    """Return, in seconds, how long after the last needed request an alert was delivered, on beats as they are set.

    A cause completes at a random instant; buffers are written each second, the rules look each 20 s and the relay runs
    each 10 s, each at a phase of its own. How long the rules themselves take is measured and added.
    """
    from django.conf import settings

    from licensing import observations, sweeps
    from licensing.models import Anomaly, OutboxMessage
    from tests.factories import make_license

    chance = random.Random(f"latency {seed}")
    beats = {name: settings.CELERY_BEAT_SCHEDULE[name]["schedule"] for name in ("anomaly-rules", "outbox-relay")}
    found = []
    for number in range(count):
        license = make_license(activation_limit=1)
        at = START + number * HOUR + timedelta(seconds=chance.uniform(0, 600))
        for each in range(4):
            observations.used(str(license.pk), f"{number}-{each}-fingerprint", None, at)
        written = at + timedelta(seconds=chance.uniform(0, observations.INTERVAL_SECONDS))
        observations.flush()
        looked = written + timedelta(seconds=chance.uniform(0, beats["anomaly-rules"]))
        begun = time.monotonic()
        sweeps.run(sweeps.RULES, at=looked)
        sent = looked + timedelta(seconds=time.monotonic() - begun + chance.uniform(0, beats["outbox-relay"]))
        begun = time.monotonic()
        sweeps.run(sweeps.OUTBOX, at=sent)
        row = Anomaly.objects.get(license=license, rule="key_sharing")
        message = OutboxMessage.objects.get(payload__anomaly=str(row.pk))
        assert message.delivered_at is not None, message.last_error
        found.append((message.delivered_at - at).total_seconds() + time.monotonic() - begun)
    return found


# --- in words ---------------------------------------------------------------------------------------


def table(result: Result) -> str:
    lines = [
        "| rule | episodes | found | recall | flagged days | false | precision | missed in | false in |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for rule, score in sorted(result.scores.items()):
        missed = ", ".join(f"{name} {count}" for name, count in sorted(score.missed_in.items())) or "–"
        false = ", ".join(f"{name} {count}" for name, count in sorted(score.false_in.items())) or "–"
        lines.append(
            f"| `{rule}` | {score.episodes} | {score.found} | {score.recall:.3f} | {score.days + score.false} "
            f"| {score.false} | {score.precision:.3f} | {missed} | {false} |"
        )
    return "\n".join(lines)


def confusion(result: Result) -> str:
    lines = ["| scenario | | days | days flagged, by rule |", "| --- | --- | ---: | --- |"]
    for scenario, days in sorted(result.lived.items(), key=lambda pair: (pair[0] in LOOK_ALIKES, pair[0])):
        counts = result.confusion.get(scenario, Counter())
        shown = ", ".join(f"{rule} {count}" for rule, count in sorted(counts.items()) if count) or "none"
        kind = "look-alike" if scenario in LOOK_ALIKES else "cause"
        lines.append(f"| {scenario.replace('_', ' ')} | {kind} | {days} | {shown} |")
    return "\n".join(lines)


def _write(result: Result, seeds: list[int], waits: list[float]) -> None:
    ordered = sorted(waits)
    text = (
        f"{result.licenses} licenses, {result.license_days} license-days, {result.benign} of the licenses "
        f"({result.benign / result.licenses:.0%}) look-alikes; seeds {', '.join(map(str, seeds))}.\n\n"
        f"{table(result)}\n\n"
        f"From the last request it took to the mail's delivery, {len(waits)} times: median "
        f"{statistics.median(waits):.1f} s, p99 {ordered[int(len(ordered) * 0.99)]:.1f} s, "
        f"worst {ordered[-1]:.1f} s.\n\n"
        f"{confusion(result)}"
    )
    path = ROOT / "docs/anomalies.md"
    whole = path.read_text()
    marked = re.compile(r"(<!-- measured -->\n).*?(\n<!-- end -->)", re.DOTALL)
    path.write_text(marked.sub(lambda found: found[1] + text + found[2], whole))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default=",".join(map(str, FINAL)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/anomalies.md")
    asked = parser.parse_args()
    own = tempfile.TemporaryDirectory()
    os.environ |= {"LICENTIA_ENV": "test", "DATABASE_URL": f"sqlite:///{own.name}/measured.sqlite3", "REDIS_URL": ""}
    os.environ["DJANGO_SETTINGS_MODULE"] = "portal.settings"
    import django
    from django.db import connection, transaction

    django.setup()
    from django.test.utils import setup_test_environment

    setup_test_environment()
    logging.disable(logging.CRITICAL)
    from licensing.background import Periodic

    Periodic.wake = lambda self: None  # type: ignore[method-assign]
    connection.creation.create_test_db(verbosity=0)
    from django.conf import settings

    settings.ALERT_EMAILS = ["ops@example.com"]
    seeds, results = [int(seed) for seed in asked.seeds.split(",")], []
    for seed in seeds:
        begun = time.monotonic()
        with transaction.atomic():
            results.append(replay(make(seed, rounds=asked.rounds)))
            transaction.set_rollback(True)
        print(f"seed {seed}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        if len(seeds) > 1:
            print(table(results[-1]), file=sys.stderr, flush=True)
    whole = merged(results)
    print(f"{whole.licenses} licenses, {whole.license_days} license-days, {whole.benign} look-alikes\n")
    print(table(whole), confusion(whole), sep="\n\n")
    if asked.write:
        with transaction.atomic():
            waits = latencies(300, seeds[0])
            transaction.set_rollback(True)
        _write(whole, seeds, waits)
    poor = [rule for rule, score in whole.scores.items() if min(score.precision, score.recall) < 0.95]
    if poor:
        print(f"below 0.95: {', '.join(sorted(poor))}")
    return 1 if poor else 0


if __name__ == "__main__":
    sys.exit(main())
