"""Schemathesis against a running server: no call of the documented API ends in anything that is not documented."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.running import running

SEED = 20_260_301
EXAMPLES = 60 if os.environ.get("LICENTIA_SOAK") else 8
LONGEST_SECONDS = 900 if os.environ.get("LICENTIA_SOAK") else 240
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
    "ignored_auth",
)
# Left out: positive_data_acceptance (a rule may refuse any well-formed body: a code is taken, a plan is not for
# sale), use_after_free and ensure_resource_availability (revoked and released things stay readable, on purpose).

ROWS = """
from tests.api.conftest import make_world
from tests.factories import make_credential
worlds = [make_world() for _ in range(8)]
names = ("license", "seat", "activation", "product", "plan", "revision", "draft", "customer", "member", "anomaly")
ids = {name: [str(getattr(world, name).pk) for world in worlds] for name in (*names, "audit_entry")}
ids["credential"] = [str(world.credential_id) for world in worlds]
ids["key"] = [world.key for world in worlds]
print(json.dumps({"secret": make_credential()[1], "ids": ids}))
"""
# Which things the paths and bodies name, so that most calls reach further than "there is no such thing".
PATHS = {
    "/licenses/": "license",
    "/seats/": "seat",
    "/activations/": "activation",
    "/products/": "product",
    "/plans/": "plan",
    "/plan-revisions/": "draft",
    "/customers/": "customer",
    "/members/": "member",
    "/anomalies/": "anomaly",
    "/audit-entries/": "audit_entry",
    "/credentials/": "credential",
}
FIELDS = {
    "body.license": "license",
    "body.customer": "customer",
    "body.product": "product",
    "body.plan": "plan",
    "body.plan_revision": "revision",
    "body.license_key": "key",
    "query.license": "license",
    "query.customer": "customer",
    "query.against": "revision",
}


def configuration(ids: dict[str, list[str]]) -> str:
    lines = []
    for name, values in ids.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines += ["[parameters]", *(_bound(where, name) for where, name in FIELDS.items())]
    for path, name in PATHS.items():
        lines += ["[[operations]]", f"include-path-regex = {json.dumps(path + '[{]')}", "[operations.parameters]"]
        lines += [_bound("path.id", name)]
    # A batch is answered 200, and says of each of its events why it was not taken.
    lines += ["[[operations]]", 'include-path-regex = "/events$"', "[operations.checks.negative_data_rejection]"]
    return "\n".join([*lines, 'expected-statuses = ["200", "4xx", "503"]'])


def _bound(where: str, name: str) -> str:
    return f'"{where}" = {{ dictionary = "{name}", probability = 0.8 }}'


@pytest.mark.parametrize("scheme", ["credential", "license key"])
def test_it_finds_nothing_that_is_not_documented(scheme: str, tmp_path: Path) -> None:
    with running(seed=ROWS) as server:
        (tmp_path / "schemathesis.toml").write_text(configuration(server.seeds["ids"]))
        if scheme == "credential":
            credential = [f"Authorization: Bearer {server.seeds['secret']}"]
            only = []
        else:
            key = server.seeds["ids"]["key"][0]
            credential = [f"Authorization: License {key}", "X-Licentia-Nonce: 0123456789abcdefghijkl"]
            # All else is 403 to a key: tests/api/test_permissions.py.
            only = ["--include-path-regex", "/(validate|activations|entitlements)"]
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("st")),
                *("--config-file", str(tmp_path / "schemathesis.toml"), "run", f"{server.url}/api/v1/schema"),
                *(part for header in credential for part in ("--header", header)),
                *("--checks", ",".join(CHECKS)),
                *("--phases", "examples,coverage,fuzzing"),
                # One worker: two threads in one Python 3.11 break `ast.parse`, which Hypothesis uses (SystemError).
                *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--workers", "1", "--no-color"),
                *("--generation-database", "none", "--suppress-health-check", "all", "--continue-on-failure"),
                # It would revoke the very credential this run calls with; tests/api/test_credentials.py calls it.
                *("--exclude-operation-id", "credentials_destroy"),
                *only,
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
        )

    print(f"seed {SEED}", done.stdout[-20_000:], done.stderr[-5_000:])
    assert done.returncode == 0
    # The run was one: operations were found, and the caller was let in.
    assert re.search(rf"Tested: {120 if scheme == 'credential' else 7}\b", done.stdout)
    assert "Authentication failed" not in done.stdout
