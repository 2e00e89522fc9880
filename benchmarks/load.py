"""A small load generator: keep-alive connections in one thread, requests made before the clock starts.

Not wrk: it runs wherever Python runs, and costs little enough that the server is what is measured. It checks every
answer's status, and can keep bodies for a closer look.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles


@dataclass
class Load:
    """What one window of load showed; times in seconds."""

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0

    def percentile(self, which: int) -> float:
        if len(self.latencies) < 2:
            return 0.0
        return quantiles(self.latencies, n=100, method="inclusive")[which - 1]


class _Connection:
    def __init__(self, port: int, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.sent_at = 0.0

    def send(self, request: bytes) -> None:
        self.buffer = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Return the whole answer once it is there."""
        data = self.socket.recv(65_536)
        if not data:
            raise ConnectionError("The server closed the connection.")
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        if b"transfer-encoding: chunked" in head.lower():
            return self.buffer if body.endswith(b"0\r\n\r\n") else None
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        return self.buffer if len(body) >= length else None


def run(
    port: int,
    requests: Sequence[bytes],
    *,
    seconds: float,
    connections: int = 32,
    rate: float | None = None,
    at_most: int | None = None,
    source: str = "127.0.0.1",
) -> Load:
    """Send the requests in turn for a while or until `at_most` are sent, as answers come or at a `rate` a second, from
    the loopback address `source`."""
    load = Load()
    waiting = selectors.DefaultSelector()
    idle = [_Connection(port, source) for _ in range(connections)]
    for connection in idle:
        waiting.register(connection.socket, selectors.EVENT_READ, connection)
    everybody = list(idle)
    begun = time.perf_counter()
    until, position = begun + seconds, 0
    try:
        while True:
            now = time.perf_counter()
            if at_most is not None and position >= at_most:
                until = now
            allowed = len(idle) if rate is None else min(len(idle), int((now - begun) * rate) - position)
            if at_most is not None:
                allowed = min(allowed, at_most - position)
            for _ in range(max(allowed, 0) if now < until else 0):
                idle.pop().send(requests[position % len(requests)])
                position += 1
            if now >= until and len(idle) == len(everybody):
                break
            for key, _ in waiting.select(timeout=0.0005 if rate else 1.0):
                connection = key.data
                answer = connection.receive()
                if answer is None:
                    continue
                load.latencies.append(time.perf_counter() - connection.sent_at)
                status = int(answer[9:12])
                load.statuses[status] = load.statuses.get(status, 0) + 1
                load.answered += 1
                load.failed += not 200 <= status < 300
                idle.append(connection)
    finally:
        load.seconds = time.perf_counter() - begun
        for connection in everybody:
            connection.socket.close()
    return load


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Return a whole POST request as bytes."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
