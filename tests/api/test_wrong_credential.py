"""Every endpoint against every credential that is none."""

from datetime import UTC, datetime, timedelta

import pytest

from licensing import credentials, keyformat
from tests.api.conftest import (
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    caller,
    nothing_written,
    without_request_id,
)
from tests.api.routes import GUARDED, Route
from tests.factories import BY, make_credential

NOW = datetime.now(UTC)


def expired() -> str:
    made = NOW - timedelta(days=100)
    return make_credential(at=made, expires_at=NOW - timedelta(seconds=1))[1]


def revoked() -> str:
    credential, secret = make_credential()
    credentials.revoke(credential=credential, by=BY, at=NOW)
    return secret


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_it_lets_nobody_in_without_a_good_credential(route: Route, world: World) -> None:
    path, body = route.path(world), route.payload(world)

    def refused(who: Api) -> dict[str, object]:
        answer = who.request(route.method, path, body, content_type=route.media)
        assert_problem(answer, 401, "unauthenticated")
        assert answer["WWW-Authenticate"]
        return without_request_id(answer)

    good, spent = make_credential()[1], (expired(), revoked())
    with nothing_written():
        none = [refused(caller(text)) for text in (None, "", "Bearer", "Bearer ", good, f"Basic {good}")]
        malformed = (f"{good}x", good[:-1], f"{good} {good}", good.upper(), "lsk_" + "é" * 43)
        bad = [refused(by_secret(text)) for text in (*malformed, *spent)]
        unknown_key = refused(by_key(keyformat.generate()))

    assert all(each == none[0] for each in none)
    assert all(each == bad[0] for each in bad)
    assert unknown_key["detail"] == "The license key is not accepted."


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_it_lets_a_good_credential_in_only_from_its_addresses(route: Route, world: World) -> None:
    _, secret = make_credential(allowed_addresses=["192.0.2.0/24", "2001:db8::/32"])
    path, body = route.path(world), route.payload(world)

    with nothing_written():
        for address in ("198.51.100.1", "2001:db9::1", "::ffff:192.0.2.1", "", "unix:"):
            answer = Api(f"Bearer {secret}", address, None).request(route.method, path, body, content_type=route.media)
            assert_problem(answer, 403, "forbidden")
    assert (
        Api(f"Bearer {secret}", "192.0.2.77", None)
        .request(route.method, path, body, content_type=route.media)
        .status_code
        == route.vendor
    )


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_it_wants_a_nonce_with_a_license_key(route: Route, world: World) -> None:
    path, body = route.path(world), route.payload(world)

    with nothing_written():
        for nonce in (None, "x" * 21, "x" * 129, "x" * 21 + "!", "x" * 30 + " y", "é" * 30):
            answer = caller(f"License {world.key}", nonce=nonce).request(
                route.method, path, body, content_type=route.media
            )
            assert_problem(answer, 400, "nonce_required")


def test_it_tells_a_mistyped_key_from_an_unknown_one_without_looking(
    world: World, django_assert_num_queries: object
) -> None:
    mistyped = world.key[:-1] + ("0" if world.key[-1] != "0" else "1")

    with django_assert_num_queries(0):  # type: ignore[operator]
        answer = by_key(mistyped).post("/validate", {})

    assert_problem(answer, 401, "license_key_mistyped")


@pytest.mark.parametrize("form", [str.lower, lambda key: key.replace("-", ""), lambda key: key.replace("-", " ")])
def test_it_knows_a_key_however_it_is_written(form: object, world: World) -> None:
    answer = by_key(form(world.key)).post("/validate", {})  # type: ignore[operator]

    assert answer.status_code == 200


def test_it_reads_the_scheme_in_any_case(world: World) -> None:
    _, secret = make_credential()

    assert caller(f"bearer {secret}").get("/licenses").status_code == 200
    assert caller(f"LICENSE {world.key}").get("/activations").status_code == 200


def test_it_says_which_scope_is_missing_only_to_a_known_caller(world: World) -> None:
    answer = by_scopes("validate").get("/licenses")

    assert_problem(answer, 403, "forbidden")
