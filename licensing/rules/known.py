"""The rules of licensing: how each judges, and test vectors beside it. Pure: what is counted where, `watching` knows.

Networks alone never stop anybody: an operator's study found that catching a quarter of those who share by their
addresses costs a tenth of the honest ones. They are counted within one hour, so that travelling is not sharing.

Source: reference design 5.18 "Anomaly rules".
"""

import math

from licensing.rules.register import Case, Facts, Rule, Thresholds
from licensing.states import Severity


def allowed(limit: int, thresholds: Thresholds) -> float:
    """Return how many of something a license of `limit` machines may show before it is odd."""
    return limit + max(thresholds["slack"], math.ceil(thresholds["share"] * limit))


def _key_sharing(facts: Facts, by: Thresholds) -> bool:
    return facts["limit"] is not None and facts["machines"] > allowed(facts["limit"], by)


def _network_sharing(facts: Facts, by: Thresholds) -> bool:
    return facts["limit"] is not None and facts["networks"] > max(by["fewest"], allowed(facts["limit"], by))


def _activation_burst(facts: Facts, by: Thresholds) -> bool:
    return facts["machines"] > max(by["fewest"], by["factor"] * facts["usual"], facts["limit"] or 0)


def _seat_rotation(facts: Facts, by: Thresholds) -> bool:
    return facts["limit"] is not None and facts["cycles"] > max(by["fewest"], by["factor"] * facts["limit"])


def _clock_tampering(facts: Facts, by: Thresholds) -> bool:
    return facts["reports"] >= by["reports"]


def _bad_signatures(facts: Facts, by: Thresholds) -> bool:
    return facts["failures"] >= (by["per_machine"] if facts["of"] == "activation" else by["per_network"])


def _key_enumeration(facts: Facts, by: Thresholds) -> bool:
    return facts["unknown"] >= by["unknown"] or facts["mistyped"] >= by["mistyped"]


def _use_after_revocation(facts: Facts, by: Thresholds) -> bool:
    return facts["machines"] >= by["machines"] or facts["times"] >= by["times"]


def _trial_abuse(facts: Facts, by: Thresholds) -> bool:
    return facts["trials"] > by["most"]


def _staff_misuse(facts: Facts, by: Thresholds) -> bool:
    return facts["reveals"] > by["reveals"] or facts["opened"] > by["opened"]


KEY_SHARING = Rule(
    "key_sharing",
    "More machines tried to use a license within 24 hours than it allows and reinstalling explains.",
    Severity.HIGH,
    "the fingerprints seen, each with when it was first and last seen",
    kind="job",
    thresholds={"slack": 2, "share": 0.1},
    judge=_key_sharing,
    cases=(
        Case(True, "five on a license for two", {"machines": 5, "limit": 2}),
        Case(True, "the first beyond the slack of a large license", {"machines": 111, "limit": 100}),
        Case(False, "two reinstalled, each a new fingerprint", {"machines": 4, "limit": 2}),
        Case(False, "as many as it allows", {"machines": 100, "limit": 100}),
        Case(False, "a license without a limit", {"machines": 5000, "limit": None}),
    ),
)
NETWORK_SHARING = Rule(
    "network_sharing",
    "A license was used from more networks at once (within one hour) than its machines can be in.",
    Severity.MEDIUM,
    "the networks (/16, /32 of IPv6) of the busiest hour",
    kind="job",
    thresholds={"slack": 2, "share": 0.5, "fewest": 7},
    judge=_network_sharing,
    cases=(
        Case(True, "eight networks in an hour, for two machines", {"networks": 8, "limit": 2}),
        Case(False, "seven: laptops on trains", {"networks": 7, "limit": 2}),
        Case(False, "everybody at home", {"networks": 14, "limit": 10}),
        Case(True, "half as many again as there are machines", {"networks": 16, "limit": 10}),
        Case(False, "a license without a limit", {"networks": 60, "limit": None}),
    ),
)
ACTIVATION_BURST = Rule(
    "activation_burst",
    "More machines asked to be activated within ten minutes than the license allows, or far more than ever.",
    Severity.HIGH,
    "the fingerprints that asked",
    kind="job",
    thresholds={"fewest": 10, "factor": 5, "percentile": 95},
    judge=_activation_burst,
    cases=(
        Case(True, "eleven on a license for five", {"machines": 11, "usual": 1, "limit": 5}),
        Case(False, "a new office of fifty is set up", {"machines": 50, "usual": 0, "limit": 50}),
        Case(False, "a farm that starts twenty at a time, as ever", {"machines": 22, "usual": 20, "limit": None}),
        Case(True, "no limit, and far more than ever", {"machines": 60, "usual": 4, "limit": None}),
        Case(False, "ten is nothing", {"machines": 10, "usual": 0, "limit": 1}),
    ),
)
SEAT_ROTATION = Rule(
    "seat_rotation",
    "Seats were released and assigned again so often within 24 hours that they are passed around.",
    Severity.MEDIUM,
    "the seats released",
    kind="job",
    thresholds={"fewest": 5, "factor": 3},
    judge=_seat_rotation,
    cases=(
        Case(True, "two seats, seven times", {"cycles": 7, "limit": 2}),
        Case(False, "two seats in three shifts", {"cycles": 6, "limit": 2}),
        Case(False, "one seat, some mistakes", {"cycles": 5, "limit": 1}),
        Case(False, "ten new colleagues", {"cycles": 10, "limit": 40}),
        Case(False, "no limit, nothing to pass around", {"cycles": 90, "limit": None}),
    ),
)
CLOCK_TAMPERING = Rule(
    "clock_tampering",
    "A machine's clock was turned back again and again within seven days.",
    Severity.CRITICAL,
    "the anomalies of clock_turned_back",
    kind="job",
    thresholds={"reports": 3},
    judge=_clock_tampering,
    cases=(
        Case(True, "three times", {"reports": 3}),
        Case(False, "a battery that died, and died again", {"reports": 2}),
    ),
)
BAD_SIGNATURES = Rule(
    "bad_signatures",
    "Signatures that do not fit came in numbers within ten minutes, for one machine or from one network.",
    Severity.HIGH,
    "the networks they came from, or the machines they named",
    kind="job",
    thresholds={"per_machine": 5, "per_network": 50},
    judge=_bad_signatures,
    cases=(
        Case(True, "five for one machine", {"of": "activation", "failures": 5}),
        Case(False, "a client with a fault, then mended", {"of": "activation", "failures": 4}),
        Case(True, "fifty from one network", {"of": "network", "failures": 50}),
        Case(False, "an office whose clients are old", {"of": "network", "failures": 49}),
    ),
)
KEY_ENUMERATION = Rule(
    "key_enumeration",
    "Somebody tries license keys: well-formed ones nobody was given, or many that are none, within ten minutes.",
    Severity.CRITICAL,
    "how many different keys, never the keys",
    kind="job",
    thresholds={"unknown": 3, "mistyped": 20},
    judge=_key_enumeration,
    cases=(
        Case(True, "three whose checksum fits", {"unknown": 3, "mistyped": 0}),
        Case(False, "one replaced key that a whole office still uses", {"unknown": 1, "mistyped": 0}),
        Case(False, "typed by hand, wrongly, by several", {"unknown": 0, "mistyped": 9}),
        Case(True, "twenty that are none", {"unknown": 0, "mistyped": 20}),
    ),
)
USE_AFTER_REVOCATION = Rule(
    "use_after_revocation",
    "A license revoked more than a day ago is still asked for, by several machines or again and again.",
    Severity.MEDIUM,
    "the fingerprints that asked, each with how often",
    kind="job",
    thresholds={"machines": 2, "times": 10, "after_hours": 24},
    judge=_use_after_revocation,
    cases=(
        Case(True, "two machines", {"machines": 2, "times": 2}),
        Case(True, "one that never stops", {"machines": 1, "times": 10}),
        Case(False, "a forgotten machine that asks when it starts", {"machines": 1, "times": 3}),
    ),
)
TRIAL_ABUSE = Rule(
    "trial_abuse",
    "A machine, or a company by its mail domain, tries out the same product more than once within a year.",
    Severity.MEDIUM,
    "the trial licenses",
    kind="job",
    thresholds={"most": 1},
    judge=_trial_abuse,
    cases=(
        Case(True, "a second trial on the same machine", {"trials": 2}),
        Case(False, "the first", {"trials": 1}),
    ),
)
STAFF_MISUSE = Rule(
    "staff_misuse",
    "One of us revealed more keys, or opened more customers, within an hour than the work explains.",
    Severity.CRITICAL,
    "the audit entries of the reveals, the customers opened",
    kind="job",
    thresholds={"reveals": 10, "opened": 30},
    judge=_staff_misuse,
    cases=(
        Case(True, "eleven keys", {"reveals": 11, "opened": 11}),
        Case(True, "thirty-one customers", {"reveals": 0, "opened": 31}),
        Case(False, "a busy hour in support", {"reveals": 10, "opened": 30}),
    ),
)

_WIRE = "tests/security/test_threats_wire.py::"
_CLIENT = "tests/clients/test_signed_client.py::"
_OURS = "tests/licensing/"


def _write(rule: str, severity: Severity, says: str, evidence: str, *proved_by: str) -> Rule:
    return Rule(rule, says, severity, evidence, proved_by=proved_by)


AT_ONCE = (
    _write(
        "cloned_installation",
        Severity.CRITICAL,
        "Two installations use one machine's key: a counter came again in another request.",
        "the counter",
        _WIRE + "test_t05_a_copy_is_noticed_within_two_requests_of_both",
    ),
    _write(
        "counter_behind",
        Severity.MEDIUM,
        "A machine's counter fell behind what was accepted before: a copy, or one put back from a backup.",
        "the counter",
        _OURS + "test_nonces.py",
    ),
    _write(
        "clock_turned_back",
        Severity.MEDIUM,
        "A program says that its machine's clock was turned back.",
        "the fingerprint",
        "tests/api/test_activations.py",
    ),
    _write(
        "license_terms_altered",
        Severity.CRITICAL,
        "The terms of a license are not what a rule wrote: somebody changed the database past the rules.",
        "the license",
        "tests/security/test_threats_stored.py::test_t13_it_notices_an_edit_by_hand_at_read",
    ),
    _write(
        "cached_verdict_differs",
        Severity.CRITICAL,
        "An answer from a copy is not what the database says, and no change explains it.",
        "both answers and revisions",
        _OURS + "test_snapshots.py",
    ),
    _write(
        "snapshot_not_believed",
        Severity.CRITICAL,
        "A shared copy of a license does not fit its proof.",
        "the license",
        _OURS + "test_snapshots.py",
    ),
    _write(
        "database_away",
        Severity.CRITICAL,
        "The database does not answer; validations are answered from the last known state where the plan allows it.",
        "the error",
        _OURS + "test_snapshots.py",
    ),
    _write("redis_away", Severity.HIGH, "Redis does not answer.", "the error", _OURS + "test_snapshots.py"),
    _write(
        "key_ring_incomplete",
        Severity.CRITICAL,
        "A key of the key ring is missing: nothing can be changed.",
        "which keys",
        _OURS + "test_keyring.py",
    ),
    _write(
        "stamps_dropped",
        Severity.MEDIUM,
        "There was no room to note when machines were last seen.",
        "how many",
        _OURS + "test_activations.py",
    ),
    _write(
        "decision_records_dropped",
        Severity.HIGH,
        "Refusals could not be recorded.",
        "how many",
        _OURS + "test_decisions.py",
    ),
    _write(
        "observations_dropped",
        Severity.MEDIUM,
        "There was no room to note what rules judge by.",
        "how many",
        _OURS + "test_observations.py",
    ),
    _write(
        "live_requests_lost",
        Severity.HIGH,
        "Live requests could not be compared under a rollout's terms, for a fault.",
        "how many, and the error",
        "tests/billing/test_shadow.py",
    ),
    _write("job_failed", Severity.CRITICAL, "A periodic job failed.", "the error", _OURS + "test_sweeps.py"),
    _write("job_overdue", Severity.CRITICAL, "A periodic job ran too long ago.", "the job", _OURS + "test_beats.py"),
    _write("delivery_late", Severity.HIGH, "Messages wait to be sent.", "how long", _OURS + "test_beats.py"),
    _write(
        "webhook_endpoint_disabled",
        Severity.HIGH,
        "A server that is to be told what happens does not answer for days, or is gone.",
        "its last answer",
        _OURS + "test_webhooks.py",
    ),
    _write(
        "redis_emptied",
        Severity.HIGH,
        "Redis lost what it held while it went on answering.",
        "nothing",
        "tests/faults/test_faults.py",
    ),
    _write(
        "process_died",
        Severity.HIGH,
        "A process ended without a farewell: killed, out of memory, or crashed.",
        "the process",
        "tests/portal/test_presence.py",
    ),
    _write(
        "clock_skewed",
        Severity.CRITICAL,
        "A machine's clock is not the database's.",
        "how many seconds",
        "tests/portal/test_clock.py",
    ),
    _write(
        "key_ring",
        Severity.CRITICAL,
        "A key of the ring is missing or not itself, or the ring was not backed up for long.",
        "the problem",
        _OURS + "test_beats.py",
    ),
    _write(
        "audit_altered",
        Severity.CRITICAL,
        "The audit record is not what its chain and checkpoints say.",
        "the first bad entries",
        _OURS + "test_checkpoints.py",
    ),
    _write(
        "audit_checkpoint_not_made",
        Severity.CRITICAL,
        "No checkpoint of the audit record could be signed.",
        "the error",
        _OURS + "test_checkpoints.py",
    ),
    _write(
        "audit_checkpoint_not_delivered",
        Severity.CRITICAL,
        "A checkpoint of the audit record did not reach a place it is kept at.",
        "the place",
        _OURS + "test_checkpoints.py",
    ),
    _write(
        "audit_checkpoint_unknown",
        Severity.CRITICAL,
        "A place that keeps checkpoints has one that is not ours.",
        "the checkpoint",
        _OURS + "test_checkpoints.py",
    ),
    _write(
        "delivery_given_up",
        Severity.CRITICAL,
        "A message could not be delivered for three days and is given up.",
        "the message",
        _OURS + "test_sweeps.py",
    ),
    _write(
        "rule_failed",
        Severity.CRITICAL,
        "A rule could not be evaluated.",
        "the error",
        _OURS + "test_watching.py",
    ),
)

RULES = (
    KEY_SHARING,
    NETWORK_SHARING,
    ACTIVATION_BURST,
    SEAT_ROTATION,
    CLOCK_TAMPERING,
    BAD_SIGNATURES,
    KEY_ENUMERATION,
    USE_AFTER_REVOCATION,
    TRIAL_ABUSE,
    STAFF_MISUSE,
    *AT_ONCE,
)
