"""Anomalies from the staff admin: acknowledged, then resolved in a person's words."""

import pytest
from django.test import Client

from licensing import anomalies
from licensing.models import Anomaly
from licensing.states import Severity
from tests.admin.conftest import act, last_entry, page, recorded, sign_in, text_of
from tests.factories import AT, opened

pytestmark = pytest.mark.django_db


@pytest.fixture
def anomaly(db: None) -> Anomaly:
    anomalies.flag(rule="odd", severity=Severity.HIGH, object_kind="job", object_id="x", at=AT, evidence={"n": 1})
    return Anomaly.objects.get()


def test_acknowledges(staff: Client, anomaly: Anomaly) -> None:
    response = staff.post(act(anomaly, "acknowledge"))

    assert response.headers["Location"] == page(anomaly)
    anomaly.refresh_from_db()
    assert anomaly.state == "acknowledged"
    assert last_entry().action == "anomaly.acknowledged"


def test_resolves_with_words(staff: Client, anomaly: Anomaly) -> None:
    without = staff.post(act(anomaly, "resolve"), {"resolution": " "})
    response = staff.post(act(anomaly, "resolve"), {"resolution": "A load test of the customer's."})

    assert without.status_code == 422
    assert response.status_code == 302
    anomaly.refresh_from_db()
    assert (anomaly.state, anomaly.resolution) == ("resolved", "A load test of the customer's.")
    entry = last_entry()
    assert (entry.action, entry.reason) == ("anomaly.resolved", "A load test of the customer's.")
    assert opened(entry).actor_label == staff.user.email  # type: ignore[attr-defined]


def test_resolving_twice_is_refused(staff: Client, anomaly: Anomaly) -> None:
    staff.post(act(anomaly, "resolve"), {"resolution": "Nothing"})

    response = staff.post(act(anomaly, "resolve"), {"resolution": "Something"})

    assert response.status_code == 422
    assert "resolved before" in text_of(response)
    anomaly.refresh_from_db()
    assert anomaly.resolution == "Nothing"


@pytest.mark.parametrize("name", ["acknowledge", "resolve"])
def test_needs_the_permission_and_a_post(staff: Client, anomaly: Anomaly, name: str) -> None:
    client = sign_in("licensing.view_anomaly")
    before = recorded().count()

    assert staff.get(act(anomaly, name), {"resolution": "x"}).status_code == 200
    assert client.get(act(anomaly, name)).status_code == 403
    assert client.post(act(anomaly, name), {"resolution": "x"}).status_code == 403
    assert act(anomaly, name) not in text_of(client.get(page(anomaly)))
    assert recorded().count() == before
