"""The figures of a run: with LICENTIA_FAULTS_TABLE set to a file, each fault's line is added to it as JSON."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Line = dict[str, object]


@pytest.fixture(scope="session")
def tell() -> Callable[[Line], None]:
    """Return where a test says what it found."""
    path = os.environ.get("LICENTIA_FAULTS_TABLE")

    def add(line: Line) -> None:
        print(json.dumps(line))
        if path:
            with Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")

    return add
