"""API credentials: scopes, expiry, addresses; one answer for every secret that is not accepted."""

import re
from datetime import timedelta

import pytest

from licensing import credentials
from licensing.credentials import LONGEST_LIFE, SCOPES, ScopeNotAllowed
from licensing.errors import Forbidden, Invalid, Unauthenticated
from licensing.models import AuditEntry, Credential
from tests.factories import AT, BY, make_credential, make_customer

pytestmark = pytest.mark.django_db
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)


def make(**overrides):
    return make_credential(**{"at": AT, "scopes": ["validate"]} | overrides)


def who(secret, **overrides):
    return credentials.authenticate(secret, **{"address": "192.0.2.7", "request_id": "r", "at": AT} | overrides)


def test_it_knows_whoever_holds_the_secret():
    row, secret = make(scopes=["validate", "seats:write"], name="our shop")

    caller = who(secret, request_id="request-9")

    assert re.fullmatch(r"lsk_[A-Za-z0-9_-]{43}", secret)
    assert (caller.kind, caller.id, caller.label) == ("B", str(row.pk), "our shop")
    assert caller.scopes == {"validate", "seats:write"}
    assert (caller.customer_id, caller.license_id, caller.request_id) == (None, None, "request-9")
    assert (caller.actor.kind, caller.actor.role, caller.actor.address) == ("credential", "vendor", "192.0.2.7")


def test_it_confines_a_customers_credential_to_the_customer():
    customer = make_customer()
    _, secret = make(customer=customer)

    caller = who(secret)

    assert (caller.customer_id, caller.actor.role) == (customer.pk, "")


def test_it_keeps_no_secret():
    row, secret = make()

    kept = repr(vars(Credential.objects.get())) + repr([vars(entry) for entry in AuditEntry.objects.all()])

    assert row.last4 == secret[-4:]
    assert secret not in kept
    assert secret[4:20] not in kept


@pytest.mark.parametrize(
    "write",
    [
        lambda secret: "",
        lambda secret: secret[:-1],
        lambda secret: secret + "A",
        lambda secret: secret + "\n",
        lambda secret: " " + secret,
        lambda secret: secret.upper(),
        lambda secret: secret[:-1] + ("A" if secret[-1] != "A" else "B"),
        lambda secret: "lsk_" + "a" * 43,
        lambda secret: "lsk_" + "é" * 43,
        lambda secret: "\x00",
    ],
)
def test_it_refuses_any_other_secret_in_the_same_words(write):
    _, secret = make()

    with pytest.raises(Unauthenticated, match="^The credential is not accepted.$"):
        who(write(secret))


def test_it_asks_no_database_for_a_malformed_secret(django_assert_num_queries):
    with django_assert_num_queries(0), pytest.raises(Unauthenticated):
        who("lsk_short")


def test_it_refuses_at_the_expiry_itself_and_after_a_revocation():
    row, secret = make(expires_at=AT + DAY)

    assert who(secret, at=AT + DAY - TICK)
    for at in (AT + DAY, AT + 2 * DAY):
        with pytest.raises(Unauthenticated, match="^The credential is not accepted.$"):
            who(secret, at=at)
    credentials.revoke(credential=row, by=BY, at=AT)
    with pytest.raises(Unauthenticated, match="^The credential is not accepted.$"):
        who(secret)


def test_it_revokes_once():
    row, _ = make()

    first = credentials.revoke(credential=row, by=BY, at=AT, reason="leaked")
    second = credentials.revoke(credential=row, by=BY, at=AT + DAY)

    assert first.revoked_at == second.revoked_at == AT
    assert AuditEntry.objects.filter(action="credential.revoked", reason="leaked").count() == 1


@pytest.mark.parametrize(
    ("allowed", "address", "passes"),
    [
        ([], None, True),
        (["192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.0/24"], "192.0.2.7", True),
        (["192.0.2.9/24"], "192.0.2.7", True),
        ([" 192.0.2.7 "], "192.0.2.7", True),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["10.0.0.0/8", "192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.8"], "192.0.2.7", False),
        (["2001:db8::/32"], "192.0.2.7", False),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["192.0.2.7"], "::ffff:192.0.2.7", False),
        (["192.0.2.7"], None, False),
        (["192.0.2.7"], "", False),
        (["192.0.2.7"], "rubbish", False),
    ],
)
def test_it_is_used_from_the_addresses_it_was_given(allowed, address, passes):
    _, secret = make(allowed_addresses=allowed)

    if passes:
        assert who(secret, address=address)
    else:
        with pytest.raises(Forbidden):
            who(secret, address=address)


@pytest.mark.parametrize("address", ["", "rubbish", "192.0.2.300", "192.0.2.0/33", "example.com", "192.0.2.1-9"])
def test_it_takes_no_address_that_is_none(address):
    with pytest.raises(Invalid):
        make(allowed_addresses=[address])


@pytest.mark.parametrize("scopes", [[], ["everything"], ["validate", "VALIDATE"], ["*"], [""]])
def test_it_takes_no_scope_that_does_not_exist(scopes):
    with pytest.raises(ScopeNotAllowed):
        make(scopes=scopes)

    assert not Credential.objects.exists()


@pytest.mark.parametrize("scope", SCOPES)
def test_it_gives_a_customer_only_what_a_customer_may_hold(scope):
    customer = make_customer()

    if SCOPES[scope]:
        assert make(customer=customer, scopes=[scope])
    else:
        with pytest.raises(ScopeNotAllowed):
            make(customer=customer, scopes=[scope])


def test_it_lets_nobody_give_more_than_they_hold():
    maker = make(scopes=["validate", "credentials:write"])[0]

    assert make(scopes=["validate"], maker=maker)
    with pytest.raises(ScopeNotAllowed):
        make(scopes=["validate", "audit:read"], maker=maker)


def test_it_lets_nobody_make_one_that_outlives_or_outreaches_their_own():
    maker = make(scopes=["validate"], expires_at=AT + 2 * DAY, allowed_addresses=["192.0.2.0/24"])[0]

    made = make(scopes=["validate"], maker=maker)[0]

    assert (made.expires_at, made.allowed_addresses) == (AT + 2 * DAY, ["192.0.2.0/24"])
    assert make(scopes=["validate"], maker=maker, allowed_addresses=["192.0.2.7"])
    with pytest.raises(Invalid):
        make(scopes=["validate"], maker=maker, expires_at=AT + 3 * DAY)
    with pytest.raises(Invalid):
        make(scopes=["validate"], maker=maker, allowed_addresses=["0.0.0.0/0"])


@pytest.mark.parametrize("expires_at", [AT, AT - TICK, AT + LONGEST_LIFE + TICK, AT + 4000 * DAY])
def test_it_lives_neither_in_the_past_nor_longer_than_a_year(expires_at):
    with pytest.raises(Invalid):
        make(expires_at=expires_at)


def test_it_lives_a_year_unless_told():
    row, _ = make()

    assert row.expires_at == AT + timedelta(days=365)


def test_it_keeps_every_scope_once():
    row, _ = make(scopes=["validate", "seats:read", "validate"])

    assert row.scopes == ["seats:read", "validate"]
