"""The picture of the house in STYLE holds: who imports whom, and what may read nothing."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]
APPS = ("portal", "billing", "licensing")


def modules(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "migrations" not in path.parts and "__pycache__" not in path.parts
    ]


def imported(path: Path) -> set[str]:
    """Return the dotted names a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_it_keeps_the_import_contracts(monkeypatch):
    monkeypatch.chdir(ROOT)

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


@pytest.mark.parametrize("name", ["decision", "states"])
def test_it_decides_without_database_clock_or_settings(name):
    allowed = ("collections.abc", "datetime.datetime", "msgspec", "licensing.states", "django.db.models.TextChoices")

    found = imported(ROOT / "licensing" / f"{name}.py")

    assert {one for one in found if not one.startswith(allowed)} == set()
    assert ".now(" not in (ROOT / "licensing" / f"{name}.py").read_text()


def test_it_imports_cryptography_in_one_place():
    users = {
        str(path.relative_to(ROOT))
        for path in modules(*APPS)
        if any(name.split(".")[0] == "cryptography" for name in imported(path))
    }

    assert users == {"licensing/crypto.py"}


def test_it_starts_without_what_few_processes_need():
    start = "import django, sys; django.setup(); import portal.urls, portal.wsgi, portal.celery; print(*sys.modules)"
    environ = os.environ | {"DJANGO_SETTINGS_MODULE": "portal.settings"}
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )

    loaded = set(done.stdout.split())
    assert "billing.payments" in loaded
    assert loaded.isdisjoint({"fpdf", "fontTools", "PIL", "stripe"})


def test_it_has_no_module_whose_name_says_nothing():
    names = {path.stem for path in modules(*APPS, "benchmarks", "tests")}

    assert names.isdisjoint({"utils", "services", "helpers", "misc", "common"})


def test_it_keeps_the_client_free_of_server_code():
    for path in modules("clients"):
        assert not any(name.split(".")[0] in {*APPS, "django"} for name in imported(path)), path


# Rules write; edges call rules. The demo's bulk licenses are for measuring only. What is about the whole installation,
# or a person wherever named, is a rule of the portal's own.
WRITERS = {
    "portal/management/commands/seed_demo.py",
    "licensing/management/commands/keyring.py",
    "portal/backups.py",
    "portal/privacy.py",
}


def test_it_writes_rows_in_rule_modules_only():
    edges = [
        path
        for path in [*modules("portal"), *modules("licensing/api"), *modules("licensing/admin")]
        if str(path.relative_to(ROOT)) not in WRITERS
    ]
    writes = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in edges
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in {"bulk_create", "bulk_update", "get_or_create", "update_or_create"}
            or (
                node.func.attr in {"create", "update", "delete"}
                and isinstance(node.func.value, ast.Attribute | ast.Call)
                and "objects" in ast.unparse(node.func.value)
            )
        )
    ]

    assert writes == []


@pytest.mark.parametrize("path", modules(*APPS), ids=lambda path: str(path.relative_to(ROOT)))
def test_it_says_what_each_module_and_public_rule_is_for(path):
    tree = ast.parse(path.read_text())
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and path.parent.name == "licensing"
    ]

    assert not path.read_text().strip() or ast.get_docstring(tree), "the module says nothing"
    assert silent == []


def test_it_skips_no_test_and_expects_none_to_fail():
    words = ["pytest." + "skip", "mark." + "skip", "mark." + "xfail", "importor" + "skip", "unittest." + "skip"]
    found = [
        f"{path.relative_to(ROOT)}: {word}" for path in modules("tests") for word in words if word in path.read_text()
    ]

    assert found == []
