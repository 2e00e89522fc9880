"""No history row holds what is secret or personal, whatever model comes next."""

import re

import pytest
from django.apps import apps

NAMES = re.compile(r"key|secret|digest|sealed|email|password|holder|address|token", re.IGNORECASE)
# Names that only sound so: which key made a digest, and the networks a credential may be used from.
HARMLESS = {"digest_kid", "allowed_addresses", "key_thumbprint"}

HISTORICAL = [model for model in apps.get_models() if model.__name__.startswith("Historical")]


def test_it_keeps_a_history_of_what_staff_change():
    kept = {model.__name__.removeprefix("Historical") for model in HISTORICAL}

    assert {"License", "Seat", "Activation", "Customer", "PlanRevision", "Credential", "Anomaly"} <= kept


@pytest.mark.parametrize("model", HISTORICAL, ids=lambda model: model.__name__)
def test_it_leaves_out_what_the_model_calls_personal_or_secret(model):
    original = model.instance_type
    hidden = {*original.PERSONAL, *original.SECRET}

    assert hidden.isdisjoint(field.name for field in model._meta.get_fields())


@pytest.mark.parametrize("model", HISTORICAL, ids=lambda model: model.__name__)
def test_it_leaves_out_what_sounds_personal_or_secret(model):
    names = {field.name for field in model._meta.get_fields()} - HARMLESS

    assert [name for name in names if NAMES.search(name)] == []


@pytest.mark.parametrize(
    "model",
    [model for model in apps.get_models() if model.__module__.startswith(("licensing", "portal", "billing"))],
    ids=lambda model: model.__name__,
)
def test_it_has_every_model_name_what_is_secret_in_it(model):
    if model in HISTORICAL:
        return
    secret = {
        field.name for field in model._meta.concrete_fields if re.search(r"^(digest|sealed\w*|secret)$", field.name)
    }

    assert secret <= set(getattr(model, "SECRET", ()))
