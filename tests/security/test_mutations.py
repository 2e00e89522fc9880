"""The list of mutations is kept up: each text is in its file, each test exists, each threat has both.

Whether the tests notice is for the long run: make soak, or python -m tests.security.mutations.
"""

import re
from pathlib import Path

import pytest

from tests.security.mutations import MUTATIONS, ROOT, Mutation, found

THREATS = [1, 2, 3, 5, 6, 8, 9, 11, 12, 13, 14, 18, 19, 20, 21, 22, 23, 24, 25]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.threat} {each.defence}")
def test_its_text_is_found_once_and_its_test_exists(mutation: Mutation) -> None:
    file, _, name = mutation.test.partition("::")

    assert found(mutation) == 1
    assert mutation.old != mutation.new
    assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("threat", THREATS)
def test_a_threat_has_a_test_of_its_number_and_a_mutation(threat: int) -> None:
    files = Path(__file__).parent.glob("test_threats_*.py")

    assert any(f"def test_t{threat:02}_" in file.read_text() for file in files)
    assert f"T{threat}" in {mutation.threat for mutation in MUTATIONS}


@pytest.mark.parametrize(
    "test", sorted(set(re.findall(r"`([a-z/_]+\.py)`", (ROOT / "docs/threat-model.md").read_text())))
)
def test_what_the_threat_model_names_exists(test: str) -> None:
    assert any((ROOT / place / test).exists() for place in ("tests", "", "licensing", "billing", "portal"))
