"""Every endpoint against every caller, and every route has its line in the table."""

import re
from typing import Any

import pytest
from django.urls import URLPattern, URLResolver, get_resolver

from tests.api.conftest import (
    ALL_SCOPES,
    MISSING_ID,
    Api,
    World,
    assert_problem,
    by_key,
    by_scopes,
    by_secret,
    caller,
    nothing_written,
    other_server,
    own_server,
    without_request_id,
)
from tests.api.routes import GUARDED, ROUTES, Route


def routed() -> set[tuple[str, str]]:
    """Return each method and path below /api/v1/ that the URLconf answers."""
    found = set()

    def walk(patterns: list[Any], prefix: str) -> None:
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, path)
            elif path.startswith("api/v1/"):
                found.update((method, _shape(path.removeprefix("api/v1"))) for method in _methods(pattern))

    walk(get_resolver().url_patterns, "")
    return found


def _methods(pattern: URLPattern) -> set[str]:
    view: Any = pattern.callback
    kind = getattr(view, "cls", None) or view.view_class
    named = getattr(view, "actions", None) or {name: name for name in kind.http_method_names if hasattr(kind, name)}
    allowed = {name.upper() for name in named if name in kind.http_method_names}
    return allowed - {"HEAD", "OPTIONS"}


def _shape(path: str) -> str:
    return re.sub(r"<[^>]*>|\{[^}]*\}", "{}", path.partition("?")[0])


def test_every_route_has_its_line_in_the_table() -> None:
    assert routed() == {(route.method, _shape(route.template)) for route in ROUTES}


@pytest.mark.parametrize("route", GUARDED, ids=str)
def test_it_answers_each_caller_as_the_table_says(route: Route, world: World) -> None:
    path = route.path(world)

    def status(who: Api) -> int:
        return int(who.request(route.method, path, route.payload(world), content_type=route.media).status_code)

    # From who may least to who may most: what is refused changes nothing for the next.
    least = {
        "nobody": (401, caller(None)),
        "unknown": (401, by_secret("lsk_" + "x" * 43)),
        "other key": (route.other_key, by_key(world.other_key)),
        "other server": (route.other, other_server(world)),
        **{scope: (403, by_scopes(scope)) for scope in ALL_SCOPES if scope != route.scope},
    }
    with nothing_written():
        answered = {name: status(who) for name, (_, who) in least.items()}
    most = {
        "key": (route.key, by_key(world.key)),
        "vendor": (route.vendor, by_scopes(str(route.scope))),
        "own server": (route.own, own_server(world)),
    }
    answered |= {name: status(who) for name, (_, who) in most.items()}

    expected = {name: wanted for name, (wanted, _) in (least | most).items()}
    assert answered == expected


@pytest.mark.parametrize("route", [route for route in ROUTES if route.scope is None], ids=str)
def test_it_asks_nobody_who_they_are_where_nothing_is_secret(route: Route, world: World) -> None:
    answer = caller(None).request(route.method, route.path(world))

    assert answer.status_code == route.vendor


@pytest.mark.parametrize("path", ["/licenses", "/seats", "/activations", "/customers", "/members"])
def test_it_lists_only_what_is_the_customers_own(path: str, world: World) -> None:
    theirs = other_server(world).get(path).json()["results"]
    ours = own_server(world).get(path).json()["results"]

    assert theirs
    assert ours
    assert not {row["id"] for row in ours} & {row["id"] for row in theirs}
    assert all(str(world.customer.pk) not in str(row) and str(world.license.pk) not in str(row) for row in theirs)


@pytest.mark.parametrize(
    "path",
    [
        "/licenses?customer={customer}",
        "/members?customer={customer}",
        "/seats?license={license}",
        "/seats?holder=ada@example.com",
        "/activations?license={license}",
        "/customers?code={code}",
        "/plan-revisions?state=draft",
    ],
)
def test_it_finds_nothing_of_another_customer_by_filtering(path: str, world: World) -> None:
    asked = path.format(customer=world.customer.pk, license=world.license.pk, code=world.customer.code)

    answer = other_server(world).get(asked)

    assert answer.status_code == 200
    assert answer.json()["results"] == []


def test_it_lists_to_a_license_key_only_its_own_machines(world: World) -> None:
    answer = by_key(world.key).get("/activations")

    assert [row["id"] for row in answer.json()["results"]] == [str(world.activation.pk)]


@pytest.mark.parametrize("route", [route for route in GUARDED if "{" in route.template], ids=str)
def test_it_answers_for_a_missing_object_as_for_another_customers(route: Route, world: World) -> None:
    nowhere = dict.fromkeys(re.findall(r"\{(\w+)\}", route.template), MISSING_ID)
    missing = by_scopes(*ALL_SCOPES).request(
        route.method, route.path(world, **nowhere), route.payload(world), content_type=route.media
    )

    assert_problem(missing, 404, "not_found")
    if route.other == 404:
        foreign = other_server(world).request(route.method, route.path(world), route.payload(world))
        assert without_request_id(foreign) == without_request_id(missing)
    if route.other_key == 404:
        foreign = by_key(world.other_key).request(route.method, route.path(world), route.payload(world))
        assert without_request_id(foreign) == without_request_id(missing)
