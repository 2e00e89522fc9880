"""Find planted secrets wherever they may have leaked to, in any of the forms a program may have written them.

A secret is looked for as it is, ungrouped, in lower and upper case, in parts, as base64, base32, hex, URL-encoded,
JSON-escaped and reversed, in plain and in compressed bytes. Run by hand over what a real installation left behind:

    python -m tests.canary FOLDER KEY [KEY…]

It names each place a form of a key was found in, and ends with 1 when there was one.
"""

import base64
import bz2
import gzip
import sqlite3
import sys
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Leak:
    """One form of one secret, found somewhere."""

    secret: str
    form: str
    place: str

    def __str__(self) -> str:
        return f"…{self.secret[-5:]} as {self.form} in {self.place}"


def forms(secret: str) -> dict[str, bytes]:
    """Return the ways the secret may be written, each long enough not to turn up by chance."""
    plain = "".join(sign for sign in secret if sign.isalnum() or sign == "_")
    body = plain[4:] if plain.startswith("LIC1") else plain
    found: dict[str, bytes] = {}
    for name, text in {
        "itself": secret,
        "ungrouped": plain,
        "spaced": secret.replace("-", " "),
        "its first groups": secret[5:22],
        "its last groups": secret[22:],
        "its random part": body[:28],
        "its first half": body[:14],
        "its second half": body[14:28],
        "reversed": plain[::-1],
    }.items():
        for case, written in {
            "": text,
            ", lower case": text.lower(),
            ", upper case": text.upper(),
        }.items():
            data = written.encode()
            found[name + case] = data
            found[f"{name}{case}, URL-encoded whole"] = "".join(f"%{byte:02X}" for byte in data).encode()
            found[f"{name}{case}, URL-encoded"] = urllib.parse.quote(written, safe="").encode()
            found[f"{name}{case}, form-encoded"] = urllib.parse.quote_plus(written).encode()
            found[f"{name}{case}, hex"] = data.hex().encode()
            found[f"{name}{case}, HEX"] = data.hex().upper().encode()
            found[f"{name}{case}, base32"] = base64.b32encode(data).rstrip(b"=")
            found[f"{name}{case}, UTF-16"] = written.encode("utf-16-le")
            found[f"{name}{case}, JSON-escaped"] = "".join(f"\\u{ord(sign):04x}" for sign in written).encode()
            # Within a longer text base64 depends on where it begins: three shifts, without their torn ends.
            for shift in range(3):
                encoded = base64.b64encode(b"\x00" * shift + data)
                core = encoded[4 if shift else 0 :][: (len(data) - 3) // 3 * 4]
                found[f"{name}{case}, base64+{shift}"] = core
                found[f"{name}{case}, base64url+{shift}"] = core.replace(b"+", b"-").replace(b"/", b"_")
    return {name: data for name, data in found.items() if len(data) >= SHORTEST}


SHORTEST = 14  # no form of a secret is shorter


class Scanner:
    """Looks for secrets in one thing after another; what it found is in `leaks`, what it read in `read`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self.forms = {secret: forms(secret) for secret in secrets}
        self.leaks: list[Leak] = []
        self.read = 0

    def look(self, data: bytes | str, place: str) -> None:
        """Look at one value, and at what is compressed in it."""
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
        self.read += len(raw)
        if len(raw) < SHORTEST:
            return
        for view, suffix in _views(raw):
            for secret, ways in self.forms.items():
                for form, written in ways.items():
                    if written in view:
                        self.leaks.append(Leak(secret, form, place + suffix))

    def look_at_value(self, value: Any, place: str) -> None:
        """Look at a value of a database or a cache, whatever its type."""
        match value:
            case None | bool() | int() | float():
                return
            case bytes() | bytearray() | memoryview():
                self.look(bytes(value), place)
            case dict():
                for name, item in value.items():
                    self.look_at_value(name, place)
                    self.look_at_value(item, f"{place}[{name!s:.20}]")
            case list() | tuple() | set():
                for item in value:
                    self.look_at_value(item, place)
            case _:
                self.look(str(value), place)

    def look_at_rows(self, cursor: Any, tables: Iterable[str]) -> None:
        """Look at every column of every row of the tables."""
        for table in tables:
            cursor.execute(f'SELECT * FROM "{table}"')
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(1_000):
                for row in rows:
                    for name, value in zip(names, row, strict=True):
                        self.look_at_value(value, f"table {table}.{name}")

    def look_at_redis(self, client: Any) -> None:
        """Look at every key of every type in the database of this client."""
        for key in client.scan_iter(count=1_000):
            self.look_at_value(key, "redis key")
            kind = client.type(key).decode()
            if kind == "none":
                continue  # it ran out meanwhile
            reads = {
                "string": lambda key: client.get(key),
                "hash": lambda key: client.hgetall(key),
                "list": lambda key: client.lrange(key, 0, -1),
                "set": lambda key: client.smembers(key),
                "zset": lambda key: [member for member, _ in client.zscan_iter(key)],
                "stream": lambda key: client.xrange(key),
            }
            self.look_at_value(reads[kind](key), f"redis {key!r:.60}")

    def look_at_folder(self, folder: Path) -> None:
        """Look at every file below the folder, its name too, and at the tables of SQLite files."""
        for path in sorted(folder.rglob("*")):
            self.look(str(path.relative_to(folder)), "file name")
            if path.is_file():
                data = path.read_bytes()
                self.look(data, f"file {path.relative_to(folder)}")
                if data.startswith(b"SQLite format 3\x00"):
                    self._look_at_sqlite(path, folder)

    def _look_at_sqlite(self, path: Path, folder: Path) -> None:
        # A page boundary may cut a value in two: the tables are read too.
        database = sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True)
        try:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found = len(self.leaks)
            self.look_at_rows(database.cursor(), names)
            self.leaks[found:] = [
                Leak(leak.secret, leak.form, f"{path.relative_to(folder)}: {leak.place}") for leak in self.leaks[found:]
            ]
        finally:
            database.close()


def _views(raw: bytes) -> Iterator[tuple[bytes, str]]:
    """Return the bytes, and what unpacks from them."""
    yield raw, ""
    for magic, unpack, name in (
        (b"\x1f\x8b", gzip.decompress, "gzip"),
        (b"BZh", bz2.decompress, "bzip2"),
        (b"\x78\x9c", zlib.decompress, "zlib"),
        (b"\x78\xda", zlib.decompress, "zlib"),
    ):
        if raw.startswith(magic):
            try:
                yield unpack(raw), f" ({name})"
            except (OSError, zlib.error, ValueError, EOFError):
                pass


def main(arguments: list[str]) -> int:
    """Scan a folder for keys given on the command line; return 1 when one is found."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    scanner = Scanner(arguments[1:])
    scanner.look_at_folder(Path(arguments[0]))
    for leak in scanner.leaks:
        print(leak)
    print(f"{scanner.read:,} bytes read, {len(scanner.leaks)} leaks")
    return 1 if scanner.leaks else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
