"""One of several programs that report usage until all of it is acknowledged, however often they or the server die.

Run as `python -m tests.concurrency.sender JSON`. What is acknowledged is appended to a file; who starts again goes on
with what is not in it, so that what was counted but not heard of is sent once more.
"""

import http.client
import json
import random
import secrets
import sys
import time
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

CHUNK = 500  # events in a row that go to the same license


def event(number: int, base: datetime) -> dict[str, str]:
    """Return event `number`, the same whoever makes it: some quantity, some instant of the last month."""
    return {
        "event_id": f"e{number}",
        "meter": "calls",
        "quantity": str(quantity(number)),
        "occurred_at": (base - timedelta(seconds=number * 104_729 % 2_500_000)).isoformat(),
    }


def quantity(number: int) -> Decimal:
    return Decimal(number * 7919 % 1000 + 1) / 8


def license_of(number: int, count: int) -> int:
    return number // CHUNK % count


def batches(first: int, last: int, dice: random.Random) -> list[list[int]]:
    """Return the numbers from `first` to `last` in batches, out of order, one in five of them once more: in the same
    batch, or in one of their own."""
    chunks = [list(range(start, min(start + CHUNK, last))) for start in range(first, last, CHUNK)]
    made = []
    for chunk in chunks:
        again = dice.sample(chunk, len(chunk) // 5)
        dice.shuffle(chunk)
        made += [chunk[: len(chunk) // 2] + again[::2], chunk[len(chunk) // 2 :], again[1::2]]
    dice.shuffle(made)
    return [batch for batch in made if batch]


class Sender:
    def __init__(self, job: dict[str, Any]) -> None:
        self.port, self.keys, self.base = job["port"], job["keys"], datetime.fromisoformat(job["base"])
        self.file = Path(job["file"])
        self.dice = random.Random(job["seed"])
        self.connection: http.client.HTTPConnection | None = None
        self.plan = batches(job["first"], job["last"], self.dice)

    def run(self) -> None:
        known = set(self.file.read_text().split()) if self.file.exists() else set()
        with self.file.open("a", buffering=1) as acknowledged:
            if known:
                acknowledged.write("\n")  # its last line may have been cut off by a death
            for place, numbers in enumerate(self.plan):
                if f"b{place}" not in known:
                    acknowledged.write(f"{' '.join(self.send(numbers))} b{place}\n")
            acknowledged.write("done\n")

    def send(self, numbers: list[int]) -> list[str]:
        """Report a batch until it is acknowledged; return the ids that were."""
        key = self.keys[license_of(numbers[0], len(self.keys))]
        events = [event(number, self.base) for number in numbers]
        single = len(events) <= 20
        paths = [("/api/v1/usage", one) for one in events] if single else [("/api/v1/usage/batch", {"events": events})]
        heard = []
        for path, body in paths:
            answer = self.post(path, body, key)
            for result in [{**answer, "event_id": body["event_id"]}] if single else answer["results"]:
                assert result["status"] in ("counted", "duplicate"), result
                heard.append(result["event_id"])
        return heard

    def post(self, path: str, body: Any, key: str) -> Any:
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                self.connection.request(
                    "POST",
                    path,
                    json.dumps(body),
                    {
                        "Content-Type": "application/json",
                        "Authorization": f"License {key}",
                        "x-licentia-nonce": secrets.token_urlsafe(18),
                    },
                )
                answer = self.connection.getresponse()
                said = answer.read()
                if answer.status in (200, 201):
                    return json.loads(said)
                assert answer.status >= 500 or answer.status == 429, said
            except (OSError, http.client.HTTPException):
                pass
            self.connection = None
            time.sleep(0.05)


if __name__ == "__main__":
    Sender(json.loads(sys.argv[1])).run()
