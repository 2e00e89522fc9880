"""A small TCP proxy that does to a connection what networks do: refuses, falls silent, slows down, loses an answer."""

import contextlib
import random
import re
import socket
import threading
import time

# An answer of PostgreSQL that ends outside a transaction: whatever was sent is committed by now, or was only read.
_SETTLED = b"Z\x00\x00\x00\x05I"
_COMMITTED = re.compile(rb"C\x00\x00\x00.(COMMIT|INSERT|UPDATE|DELETE)", re.DOTALL)


class Proxy:
    """Stands on a port of its own in front of another. What it does is said by its attributes, at any time:

    `refusing`: no connection lasts. `silent`: what is sent arrives nowhere and nothing comes back.
    `delay_seconds`: each answer waits so long. `loses`: how likely an answer of PostgreSQL that a transaction has ended
    is lost, with its connection; `lost` counts them, `lost_commits` those of a write.
    """

    def __init__(self, target: int, dice: random.Random) -> None:
        self.target = target
        self.dice = dice
        self.refusing = self.silent = False
        self.delay_seconds = self.loses = 0.0
        self.lost = self.lost_commits = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection there is."""
        with self._lock:
            ended, self._open = self._open, set()
        for each in ended:
            _end(each)

    def refuse(self, refusing: bool) -> None:
        """Refuse from now on, also whoever is connected; or accept again."""
        self.refusing = refusing
        if refusing:
            self.cut()

    def close(self) -> None:
        """Be gone."""
        _end(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = None if self.refusing else socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            server = None
        if server is None:
            _end(client)
            return
        server.settimeout(None)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
        self._pump(server, client, True)

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.delay_seconds:
                    time.sleep(self.delay_seconds)
                if answers and self._loses(data):
                    break
                if not self.silent:
                    target.sendall(data)
        for each in (source, target):
            _end(each)
        with self._lock:
            self._open -= {source, target}

    def _loses(self, data: bytes) -> bool:
        if not self.loses or not data.endswith(_SETTLED) or self.dice.random() >= self.loses:
            return False
        self.lost += 1
        self.lost_commits += bool(_COMMITTED.search(data))
        return True


def _end(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        each.close()
