"""The OpenAPI document says what the API does, and all of it."""

import re
from typing import Any

import msgspec
import pytest
import yaml
from django.core.management import call_command
from django.test import Client
from drf_spectacular.validation import validate_schema

from licensing.api import serializers as shapes
from licensing.gate import ValidateBody
from tests.api.conftest import World, by_key, by_scopes, caller
from tests.api.routes import ROUTES
from tests.api.test_permissions import routed


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("schema") / "openapi.yaml"
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(path))
    return yaml.safe_load(path.read_text())


def test_it_is_openapi_3_1_without_a_warning(schema: Any) -> None:
    assert schema["openapi"].startswith("3.1.")
    validate_schema(schema)


def test_it_documents_every_route_and_no_other(schema: Any) -> None:
    documented = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/api/v1")))
        for path, operations in schema["paths"].items()
        for method in operations
    }

    assert documented == routed() - {("GET", "/schema")}


def test_it_is_served_as_it_is_written(schema: Any) -> None:
    answer = caller(None).get("/schema")

    assert answer.status_code == 200
    assert yaml.safe_load(answer.content)["paths"] == schema["paths"]


def test_it_names_each_operation_once(schema: Any) -> None:
    names = [operation["operationId"] for path in schema["paths"].values() for operation in path.values()]

    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


def test_it_documents_the_body_of_validate_as_the_gate_reads_it() -> None:
    read = {field.name for field in msgspec.structs.fields(ValidateBody)}

    assert set(shapes.ValidateRequest().fields) == read
    for name, field in shapes.ValidateRequest().fields.items():
        assert not field.required, name


def test_it_documents_the_answer_of_validate_as_the_gate_says_it(world: World) -> None:
    said = by_key(world.key).post("/validate", {}).json()

    assert set(shapes.Validated().fields) == set(said)
    assert set(shapes.ShownLicense().fields) == set(said["license"])
    assert set(shapes.ShownSeats().fields) == set(said["license"]["seats"])


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"fingerprint": "a" * 16}, {"fingerprint": "a" * 15}),
        ({"fingerprint": "a" * 128}, {"fingerprint": "a" * 129}),
        ({"product": "a" * 64}, {"product": "a" * 65}),
        ({"version": "1.0+a~b:c-d"}, {"version": "1 0"}),
        ({"entitlements": ["a"] * 100}, {"entitlements": ["a"] * 101}),
        ({"entitlements": ["a" * 64]}, {"entitlements": ["a" * 65]}),
        ({"seat_holder": "ada@example.com"}, {"seat_holder": "ada"}),
    ],
)
def test_it_documents_the_limits_of_validate_as_the_gate_holds_them(
    good: dict[str, Any], bad: dict[str, Any], world: World
) -> None:
    assert shapes.ValidateRequest(data=good).is_valid()
    assert not shapes.ValidateRequest(data=bad).is_valid()
    assert by_key(world.key).post("/validate", good).status_code == 200
    assert by_key(world.key).post("/validate", bad).status_code == 400


def test_it_tells_of_every_problem_a_call_may_end_in(schema: Any) -> None:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            assert {"400", "401", "403", "429"} <= set(operation["responses"]), (path, method)
            for status, answer in operation["responses"].items():
                kinds = list(answer.get("content", {}))
                document = {"pdf": "application/pdf", "csv": "text/csv"}.get(
                    path.rsplit("/", 1)[-1], "application/json"
                )
                usual = ["application/problem+json"] if status >= "4" else [document]
                wanted = [] if status == "204" else usual
                assert kinds == wanted, (path, method, status)


def test_it_documents_the_idempotency_key_wherever_it_is_heeded(schema: Any) -> None:
    heeding = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path.removeprefix("/api/v1")))
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", []))
    }

    assert heeding == {
        (route.method, re.sub(r"\{[^}]*\}", "{}", route.template.partition("?")[0])) for route in ROUTES if route.once
    }


def test_it_shows_keys_and_secrets_only_where_they_are_told(schema: Any) -> None:
    components = schema["components"]["schemas"]
    telling = {name for name, shape in components.items() if {"key", "secret"} & set(shape.get("properties", {}))}

    assert telling == {"IssuedLicense", "NewCredential", "EndpointWithSecret", "Entitlement", "EntitlementRequest"}


def test_it_has_readable_pages(db: None) -> None:
    assert Client().get("/api/docs").status_code == 200


def test_it_documents_what_is_in_an_answer(schema: Any, world: World) -> None:
    server = by_scopes("licenses:read", "seats:read", "catalog:read", "customers:read", "activations")
    for path, name in (
        (f"/licenses/{world.license.pk}", "LicenseRow"),
        (f"/seats/{world.seat.pk}", "Seat"),
        (f"/products/{world.product.pk}", "Product"),
        (f"/plans/{world.plan.pk}", "Plan"),
        (f"/plan-revisions/{world.revision.pk}", "PlanRevision"),
        (f"/customers/{world.customer.pk}", "Customer"),
        (f"/members/{world.member.pk}", "Member"),
        (f"/activations/{world.activation.pk}", "Activation"),
    ):
        assert set(server.get(path).json()) == set(schema["components"]["schemas"][name]["properties"]), path
