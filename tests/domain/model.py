"""What must be true of a few licenses, in plain dicts: written from docs/ alone, it uses nothing of the product.

Each act changes the dicts as the docs say and returns the code it is answered with, "ok" where nothing is refused.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

from tests.billing import rater

GRACE, TERM = timedelta(days=3), timedelta(days=15)
DAY = timedelta(days=1)
BACK, AHEAD, CORRECTED = timedelta(days=35), timedelta(minutes=5), timedelta(days=92)
SEAT = {"kind": "seats", "amount": "31.00"}
TIERS = [{"up_to": "5", "amount": "0.125"}, {"amount": "0.07"}]
# What is sold: how it is used, how much of it there is, and what it costs.
PLANS: dict[str, dict[str, Any]] = {
    "named": {"scheme": "seats", "floats": False, "seats": 3, "machines": 2, "price": [SEAT]},
    "floating": {
        **{"scheme": "seats", "floats": True, "seats": 2, "machines": 3, "allowance": (20, "refuse")},
        "price": [{"kind": "flat", "amount": "9.99"}, SEAT],
    },
    "metered": {
        **{"scheme": "usage", "floats": False, "seats": None, "machines": None, "allowance": (20, "refuse")},
        "price": [{"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.1"}],
    },
    "soft": {
        **{"scheme": "usage", "floats": False, "seats": None, "machines": 1, "allowance": (2, "charge")},
        "price": [{"kind": "usage", "meter": "calls", "model": "graduated", "tiers": TIERS}],
    },
    "both": {
        **{"scheme": "both", "floats": False, "seats": 2, "machines": 2, "allowance": (3, "charge")},
        "price": [
            SEAT,
            {"kind": "usage", "meter": "calls", "model": "per_unit", "amount": "0.333"},
            {"kind": "discount", "percent": "10"},
            {"kind": "minimum", "amount": "20.00"},
        ],
    },
}
License = dict[str, Any]


def drafted(plan: str, at: datetime) -> License:
    return {
        **{"plan": plan, "seats": PLANS[plan]["seats"], "machines": PLANS[plan]["machines"]},
        **{"starts": at, "expires": at + TERM, "issued": False, "revoked": None, "swept": "draft", "due": None},
        **{"holds": {}, "seated": {}, "leases": {}, "active": set(), "terms": [], "events": {}, "held": {}},
        **{"limits": [], "keys": {}, "scheduled": None, "entries": Counter({"license.drafted": 1})},
    }


# --- how it stands ----------------------------------------------------------------------------------


def timed(license: License, at: datetime) -> str:
    if at < license["expires"]:
        return "active"
    return "in_grace" if at < license["expires"] + GRACE else "expired"


def status(license: License, at: datetime) -> str:
    if not license["issued"]:
        return "draft"
    if license["revoked"]:
        return "revoked"
    return "held" if license["holds"] else timed(license, at)


def floats(license: License) -> bool:
    return bool(PLANS[license["plan"]]["floats"])


def used(license: License) -> int:
    """Return how many units are counted: seats, and leases that were not taken back, lapsed or not."""
    return len(license["seated"]) + len(out(license))


def out(license: License) -> list[str]:
    return [machine for machine, lease in license["leases"].items() if not lease["ended"]]


def verdict(license: License, at: datetime, *, holder: str = "", machine: str = "", calls: bool = False) -> str:
    """Return the code of the first rule that applies, in the order of the contract."""
    now = status(license, at)
    if now in ("draft", "revoked", "held", "expired"):
        return "not_found" if now == "draft" else now
    if machine and machine not in license["active"] and license["active"]:
        return "fingerprint_mismatch"
    lease = license["leases"].get(machine)
    until = None if lease is None or (lease["ended"] and not lease["lapsed"]) else lease["until"]
    if floats(license):
        if until is None:
            return "seat_required"
        if until <= at:
            return "lease_lapsed"
    elif holder not in license["seated"] and (holder or license["plan"] == "named"):
        return "seat_required"
    if calls and "allowance" not in PLANS[license["plan"]]:
        return "entitlement_missing"
    if calls and exhausted(license, at):
        return "allowance_exhausted"
    return "valid" if now == "active" else "in_grace"


def exhausted(license: License, at: datetime) -> bool:
    start, end, plan = window(license, at)
    amount, beyond = PLANS[plan].get("allowance", (0, "charge"))
    return beyond == "refuse" and taken(license, start, end) + reserved(license, start, end) >= amount


# --- terms, windows, allowances ---------------------------------------------------------------------


def terms(license: License) -> list[dict[str, Any]]:
    return [term for term in license["terms"] if not term["undone"]]


def month(at: datetime) -> tuple[datetime, datetime]:
    start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return start, (start + timedelta(days=32)).replace(day=1)


def window(license: License, at: datetime) -> tuple[datetime, datetime, str]:
    """Return the part of a month under one term that an instant lies in, and the plan of it."""
    start, end = month(at)
    plan = ""
    for term in terms(license):
        if term["starts"] <= at:
            start, plan = max(start, term["starts"]), term["plan"]
        else:
            end = min(end, term["starts"])
    return start, end, plan


def taken(license: License, start: datetime, end: datetime) -> float:
    return float(sum(event["quantity"] for event in license["events"].values() if start <= event["at"] < end))


def reserved(license: License, start: datetime, end: datetime, running_at: datetime | None = None) -> float:
    rows = [row for row in license["held"].values() if row["state"] == "open" and start <= row["at"] < end]
    return float(sum(row["quantity"] for row in rows if running_at is None or row["until"] > running_at))


def fits(license: License, quantity: float, when: datetime, at: datetime) -> bool:
    """Say whether so much more may be used or held: what lapsed is free."""
    start, end, plan = window(license, when)
    amount, beyond = PLANS[plan].get("allowance", (0, "charge"))
    if beyond != "refuse" or not quantity:
        return True
    return bool(taken(license, start, end) + reserved(license, start, end, at) + quantity <= amount)


def stopped(license: License, when: datetime, at: datetime) -> str:
    """Return why usage of an instant is not taken; "ok" if it is."""
    if when < at - BACK:
        return "too_old"
    if when > at + AHEAD:
        return "too_far_ahead"
    if when < license["starts"]:
        return "not_started"
    if not license["issued"]:
        return "not_found"
    ends = license["expires"] + GRACE
    if not license["revoked"] and not license["holds"] and when < ends:
        return "ok"
    since = {"revoked": license["revoked"], "held": min(license["holds"].values(), default=None), "expired": ends}
    known = {code: instant for code, instant in since.items() if instant is not None}
    return next(iter(known)) if when >= min(known.values()) else "ok"


# --- acts -------------------------------------------------------------------------------------------


def write(license: License, action: str, at: datetime) -> str:
    """An act that writes the license's row notes what time has made of it by then."""
    settle(license, at)
    return note(license, action)


def note(license: License, action: str) -> str:
    license["entries"][action] += 1
    return "ok"


def settle(license: License, at: datetime) -> None:
    license["swept"] = "revoked" if license["revoked"] else timed(license, at)
    due = {"active": license["expires"], "in_grace": license["expires"] + GRACE}
    license["due"] = due.get(license["swept"])


def stands(license: License) -> bool:
    return license["issued"] and not license["revoked"]


def issue(license: License, at: datetime) -> str:
    if license["issued"]:
        return "refused"
    license.update(issued=True, starts=at, expires=at + TERM)
    license["terms"].append({"starts": at, "plan": license["plan"], "undone": False})
    license["limits"] = [(at, license["seats"], None)]
    return write(license, "license.issued", at)


def assign(license: License, holder: str, at: datetime) -> str:
    if holder in license["seated"]:
        return "ok"
    if not stands(license) or timed(license, at) == "expired":
        return "license_not_usable"
    if floats(license) or PLANS[license["plan"]]["scheme"] == "usage":
        return "seats_not_named"
    if license["seats"] is not None and used(license) >= license["seats"]:
        return "no_seat_available"
    license["seated"][holder] = None
    return note(license, "seat.assigned")


def release(license: License, holder: str) -> str:
    if holder in license["seated"]:
        del license["seated"][holder]
        note(license, "seat.released")
    return "ok"


def usable(license: License, at: datetime) -> bool:
    return status(license, at) in ("active", "in_grace")


def check_out(license: License, machine: str, ttl: timedelta, at: datetime) -> str:
    if not usable(license, at):
        return "license_not_usable"
    if not floats(license):
        return "seats_not_floating"
    until = min(at + ttl, license["expires"] + GRACE)
    if machine in out(license):
        lease = license["leases"][machine]
        lease["until"] = max(lease["until"], until)
        return "ok"
    if license["seats"] is not None and used(license) >= license["seats"]:
        reclaim(license, at)  # nobody is refused while a lapsed lease is counted
    if license["seats"] is not None and used(license) >= license["seats"]:
        return "no_seat_available"
    license["leases"][machine] = {"until": until, "ended": False, "lapsed": False}
    return note(license, "lease.checked_out")


def renew_lease(license: License, machine: str, ttl: timedelta, at: datetime) -> str:
    if not usable(license, at):
        return "license_not_usable"
    if not floats(license):
        return "seats_not_floating"
    lease = license["leases"][machine]
    if lease["ended"]:
        return "lease_ended"
    lease["until"] = max(lease["until"], min(at + ttl, license["expires"] + GRACE))
    return "ok"


def check_in(license: License, machine: str, at: datetime, action: str = "lease.checked_in") -> str:
    lease = license["leases"][machine]
    if not lease["ended"]:
        lease.update(ended=True, lapsed=at >= lease["until"])
        note(license, action)
    return "ok"


def reclaim(license: License, at: datetime) -> None:
    for machine in out(license):
        if license["leases"][machine]["until"] <= at:
            check_in(license, machine, at, "lease.reclaimed")


def activate(license: License, machine: str, holder: str, at: datetime) -> str:
    if not usable(license, at):
        return "license_not_usable"
    if license["plan"] == "named" and holder not in license["seated"]:
        return "seat_required"
    if machine in license["active"]:
        return "ok"
    if license["machines"] is not None and len(license["active"]) >= license["machines"]:
        return "activation_limit_reached"
    license["active"].add(machine)
    return note(license, "activation.created")


def deactivate(license: License, machine: str, at: datetime) -> str:
    if machine in license["active"]:
        license["active"].remove(machine)
        note(license, "activation.ended")
        if machine in out(license):
            check_in(license, machine, at, "lease.ended")
    return "ok"


def hold(license: License, reason: str, at: datetime) -> str:
    if not stands(license):
        return "license_not_usable"
    if reason in license["holds"]:
        return "already_held"
    expire(license, at)
    license["holds"][reason] = at
    return note(license, "license.held")


def lift(license: License, reason: str, at: datetime) -> str:
    if reason not in license["holds"]:
        return "not_held"
    expire(license, at)
    del license["holds"][reason]
    return note(license, "license.lifted")


def revoke(license: License, at: datetime) -> str:
    if license["revoked"]:
        return "ok"
    if not license["issued"]:
        return "license_not_usable"
    expire(license, at)
    license["revoked"] = at
    return write(license, "license.revoked", at)


def renew(license: License, key: str, at: datetime) -> str:
    """Renewed once for each key, however often it is sent within a day."""
    if key in license["keys"] and at < license["keys"][key] + DAY:
        return "ok"
    if not stands(license):
        return "license_not_usable"
    expire(license, at)
    license["keys"][key] = at
    license["expires"] += TERM
    return write(license, "license.renewed", at)


def limit(license: License, seats: int | None, at: datetime) -> str:
    if not stands(license):
        return "license_not_usable"
    expire(license, at)
    if seats != license["seats"]:
        license["limits"].append((at, seats, None))
    license["seats"] = seats
    return write(license, "license.limits_changed", at)


PUT_BACK = ("plan", "seats", "machines", "expires", "swept", "due")


def change(license: License, plan: str, at: datetime, starts: datetime | None = None) -> str:
    """Put it under another plan: now, or late from an instant on, in which case limits set by people since stay."""
    starts = starts or at
    if not stands(license):
        return "license_not_usable"
    if any(term["starts"] >= starts for term in terms(license)):
        return "term_starts_already"
    expire(license, at)
    before = {name: license[name] for name in PUT_BACK}
    set_since = [seats for since, seats, of in license["limits"] if since > starts and of is None]
    license["limits"].append((starts, PLANS[plan]["seats"], starts))
    license["limits"].sort(key=lambda row: row[0])
    seats = set_since[-1] if set_since else PLANS[plan]["seats"]
    license.update(plan=plan, seats=seats, machines=PLANS[plan]["machines"])
    write(license, "license.plan_changed", at)
    after = {name: license[name] for name in PUT_BACK}
    license["terms"].append({"starts": starts, "plan": plan, "undone": False, "before": before, "after": after})
    return "ok"


def schedule(license: License, plan: str, starts: datetime) -> str:
    if not stands(license):
        return "license_not_usable"
    if license["scheduled"]:
        return "change_scheduled_already"
    license["scheduled"] = (plan, starts)
    return note(license, "license.change_scheduled")


def switch(license: License, at: datetime) -> None:
    """Make the change whose instant has come; what is not allowed by then is refused for good."""
    if license["scheduled"] and license["scheduled"][1] <= at:
        plan, starts = license["scheduled"]
        license["scheduled"] = None
        if change(license, plan, at, starts) != "ok":
            note(license, "license.change_refused")


def undo(license: License, final: list[datetime], at: datetime) -> str:
    """The license is what it was before its last change, but for what other acts have changed since."""
    if license["scheduled"]:
        license["scheduled"] = None
        return note(license, "license.change_cancelled")
    last = terms(license)[-1] if terms(license) else {}
    if "before" not in last:
        return "nothing_to_undo"
    if any(end > last["starts"] for end in final):
        return "change_is_final"
    expire(license, at)
    for name in PUT_BACK:
        if last["before"][name] != last["after"][name] and license[name] == last["after"][name]:
            license[name] = last["before"][name]
    if any(license[name] != last["before"][name] for name in ("expires", "swept", "due")) or license["revoked"]:
        settle(license, at)
    license["limits"] = [row for row in license["limits"] if row[2] != last["starts"]]  # as if it had never been
    last["undone"] = True
    return note(license, "license.change_undone")


def consume(license: License, event: str, content: tuple[float, datetime], at: datetime) -> str:
    quantity, when = content
    if event in license["events"]:
        known = license["events"][event]
        return "duplicate" if known["kind"] == "usage" and known["content"] == content else "event_conflict"
    code = stopped(license, when, at)
    if code != "ok":
        return code
    if not fits(license, quantity, when, at):
        return "allowance_exhausted"
    license["events"][event] = {"quantity": quantity, "at": when, "kind": "usage", "content": content}
    return "counted"


def correct(license: License, event: str, content: tuple[float, datetime], at: datetime) -> str:
    quantity, when = content
    if not terms(license) or when < terms(license)[0]["starts"]:
        return "not_started"
    if event in license["events"]:
        known = license["events"][event]
        return "duplicate" if known["kind"] == "correction" and known["content"] == content else "event_conflict"
    license["events"][event] = {"quantity": quantity, "at": when, "kind": "correction", "content": content}
    note(license, "usage.corrected")
    return "counted"


def reserve(license: License, hold: str, quantity: float, until: datetime, at: datetime) -> str:
    code = stopped(license, at, at)
    if code != "ok":
        return code
    if not fits(license, quantity, at, at):
        return "allowance_exhausted"
    license["held"][hold] = {"quantity": quantity, "at": at, "until": until, "state": "open"}
    return "ok"


def commit(license: License, hold: str, quantity: float, at: datetime) -> str:
    row, event = license["held"][hold], f"of-{hold}"
    if row["state"] == "committed":
        same = license["events"][event]["content"] == (quantity, row["at"])
        return "duplicate" if same else "event_conflict"
    if row["state"] != "open" or row["until"] <= at:
        return "reservation_ended"
    row["state"] = "committed"
    content = (quantity, row["at"])
    license["events"][event] = {"quantity": quantity, "at": row["at"], "kind": "usage", "content": content}
    return "counted"


def let_go(license: License, hold: str) -> str:
    row = license["held"][hold]
    if row["state"] not in ("open", "released"):
        return "reservation_ended"
    row["state"] = "released"
    return "ok"


# --- time -------------------------------------------------------------------------------------------


def expire(license: License, at: datetime) -> None:
    """What time made of it is recorded once for each step."""
    while license["due"] is not None and license["due"] <= at:
        settle(license, license["due"])
        note(license, f"license.{'entered_grace' if license['swept'] == 'in_grace' else 'expired'}")


def lapse(license: License, at: datetime) -> None:
    for row in license["held"].values():
        if row["state"] == "open" and row["until"] <= at:
            row["state"] = "lapsed"


# --- money ------------------------------------------------------------------------------------------


def owed(license: License, start: datetime, end: datetime) -> int:
    """Return the cents a license owes for a month, by the tests' own rater."""
    total = 0
    for index, term in enumerate(terms(license)):
        later = terms(license)[index + 1]["starts"] if index + 1 < len(terms(license)) else end
        stretch = max(start, term["starts"]), min(end, later)
        if stretch[0] >= stretch[1]:
            continue
        ends = min(license["expires"], license["revoked"] or license["expires"])
        covered = stretch[0], min(stretch[1], ends)
        plan = PLANS[term["plan"]]
        case: dict[str, Any] = {
            "currency": "EUR",
            "scheme": plan["scheme"],
            "period": (start, end),
            "stretch": stretch,
            "covered": [covered] if covered[0] < covered[1] else [],
            "seats": _seats(license, *covered, min(end, license["expires"])),
            "used": {"calls": str(taken(license, *stretch))},
            "allowances": {},
        }
        if "allowance" in plan:
            amount, beyond = plan["allowance"]
            case["allowances"] = {"calls": (amount, beyond == "charge")}
        total += sum(amount for _, amount in rater.rate(plan["price"], case))
    return total


def _seats(license: License, start: datetime, end: datetime, paid_until: datetime) -> list[Any]:
    """Return the parts of one seat limit each: how many, from when to when, and until when they are paid."""
    found: list[Any] = []
    for index, (since, count, _) in enumerate(license["limits"]):
        later = license["limits"][index + 1][0] if index + 1 < len(license["limits"]) else end
        part = max(since, start), min(later, end)
        if part[0] >= part[1]:
            continue
        if found and found[-1][0] == count:
            found[-1] = (count, found[-1][1], part[1], paid_until)
        else:
            found.append((count, *part, paid_until))
    return found
