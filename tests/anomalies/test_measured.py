"""The rules find the causes and leave the look-alikes alone: the short form of what docs/anomalies.md measures."""

import os

import pytest

from tests.anomalies import measure
from tests.anomalies.generator import LOOK_ALIKES, make

pytestmark = pytest.mark.django_db
LONG = bool(os.environ.get("LICENTIA_SOAK"))
SEED, ROUNDS, DAYS = (201, 12, 28) if LONG else (11, 1, 32)
RULES = {
    *("activation_burst", "bad_signatures", "clock_tampering", "cloned_installation", "key_enumeration"),
    *("key_sharing", "network_sharing", "seat_rotation", "sequence_gaps", "staff_misuse", "trial_abuse"),
    *("usage_silence", "usage_spike", "use_after_revocation"),
}


def test_the_same_seed_makes_the_same_population() -> None:
    one, same, other = (make(seed, rounds=1, days=28) for seed in (1, 1, 2))

    assert (one.seen, one.episodes, one.reveals) == (same.seen, same.episodes, same.reveals)
    assert one.seen != other.seen


def test_a_third_of_the_licenses_are_look_alikes_and_no_label_names_one() -> None:
    world = make(3, rounds=2, days=28)

    assert sum(one.benign for one in world.licenses) >= len(world.licenses) / 3
    assert {episode.rule for episode in world.episodes} == RULES
    assert not {episode.scenario for episode in world.episodes} & LOOK_ALIKES


def test_precision_and_recall_of_every_rule() -> None:
    result = measure.replay(make(SEED, rounds=ROUNDS, days=DAYS))

    assert result.license_days >= (10_000 if LONG else 1_000)
    assert result.scores.keys() == RULES
    poor = {
        rule: (score.recall, score.precision, score.missed_in, score.false_in)
        for rule, score in result.scores.items()
        if score.recall < 0.95 or score.precision < 0.95
    }
    assert not poor, poor


def test_an_alert_is_delivered_within_a_minute(settings: pytest.FixtureRequest) -> None:
    settings.ALERT_EMAILS = ["ops@example.com"]  # type: ignore[attr-defined]

    waits = sorted(measure.latencies(20, 1))

    assert waits[-1] <= 60.0
