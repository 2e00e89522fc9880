"""What the client library costs the program it is built into: `check` while its verdict is fresh.

The machine is activated and validated by a real server first; `python -m benchmarks.sdk` starts one of its own.
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "clients" / "python"))

import httpx  # noqa: E402
from licentia_client import Machine, SignedClient  # noqa: E402

NAME = "SDK check in the running program"
GOAL_MICROSECONDS = 1.0
CALLS, REPEATS = 200_000, 7
SEED = """
from django.utils import timezone
from tests.factories import make_license_and_key
print(json.dumps(make_license_and_key(at=timezone.now())[1]))
"""


def microseconds_per_check(*, base_url: str, license_key: str) -> float:
    """Return the µs one `check` takes of a machine that is activated for this at the server, and let go afterwards: the
    best of several runs, the loop around it included."""
    keys = httpx.get(f"{base_url}/.well-known/jwks.json").json()
    with tempfile.TemporaryDirectory(prefix="licentia-sdk-") as folder:
        machine = Machine.open(Path(folder) / "machine", fingerprint="benchmarks-sdk-0123456789")
        client = SignedClient(base_url, machine=machine, keys=keys)
        client.activate(license_key)
        if not client.check():
            raise RuntimeError(f"The server does not allow it: {client.check().detail}")
        times = [_seconds(client) for _ in range(REPEATS)]
        client.deactivate()
    return min(times) / CALLS * 1e6


def _seconds(client: SignedClient) -> float:
    check = client.check
    began = time.perf_counter()
    for _ in range(CALLS):
        check()
    return time.perf_counter() - began


if __name__ == "__main__":
    from tests.api.running import running

    with running(seed=SEED) as server:
        value = microseconds_per_check(base_url=server.url, license_key=server.seeds)
    print(f"{NAME}: {value:.3f} µs (goal: <= {GOAL_MICROSECONDS:g})")
    sys.exit(value > GOAL_MICROSECONDS)
