#!/usr/bin/env python3
"""Check an export of Licentia's audit record, with public keys alone: python verify_audit.py EXPORT --keys jwks.json

One file that needs nothing but Python 3.11; where `cryptography` is installed, signatures are checked faster. It shares
no code with the server and speaks to nobody. It reads line by line, so its memory does not grow with the record.

EXPORT is what `manage.py audit export` wrote. The keys are those of https://…/.well-known/jwks.json, taken at another
time or from somebody else than whoever gave you the export. --checkpoints names files of checkpoints that you got by
mail, webhook or copy, a line of JSON each: an export that does not agree with one of them was altered.

Exits 0 when all is as it was written, 1 when something is not, with the first bad place named, 2 when it cannot tell.

What it compares:
  entry       content = SHA-256(0x00 || JSON of the entry's columns and its form; sorted keys, ASCII, no spaces)
  chain       chain_n = SHA-256(0x02 || chain_n-1 || content_n), from 32 zero bytes on; numbers without gaps
  checkpoint  Ed25519 over "licentia audit checkpoint 1\\nsize …\\nhead …\\nat …\\nkid …\\n"; head = chain at that size
"""

import argparse
import base64
import hashlib
import json
import sys

try:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
except ImportError:
    Ed25519PublicKey = None

LISTED = 20


class Unusable(Exception):
    """The files cannot be read as what they should be."""


# --- Ed25519, as RFC 8032 section 5.1 has it: for where `cryptography` is not ----------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT = pow(2, (P - 1) // 4, P)


def _recover(y, sign):
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * ROOT % P
    if y >= P or (x * x - x2) % P or (x == 0 and sign):
        return None
    return P - x if x & 1 != sign else x


def _point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    x = _recover(y, sign)
    return None if x is None else (x, y, 1, x * y % P)


def _add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(scalar, point):
    found = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            found = _add(found, point)
        point, scalar = _add(point, point), scalar >> 1
    return found


BASE = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def pure_verify(public, signature, message):
    """Return whether the signature is the key's, in plain Python."""
    if len(public) != 32 or len(signature) != 64:
        return False
    a, r = _point(public), _point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    one, other = _times(s, BASE), _add(r, _times(k, a))
    return (one[0] * other[2] - other[0] * one[2]) % P == 0 and (one[1] * other[2] - other[1] * one[2]) % P == 0


def verify(public, signature, message):
    """Return whether the signature is the key's."""
    if Ed25519PublicKey is None:
        return pure_verify(public, signature, message)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- what the files hold ---------------------------------------------------------------------------------


def unb64(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def read_keys(path):
    """Return Ed25519 public keys by id, from a JSON Web Key Set."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["keys"]
        return {row["kid"]: unb64(row["x"]) for row in rows if row.get("crv") == "Ed25519"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{path} is no JSON Web Key Set: {error}") from None


def read_lines(path):
    """Return the file's lines as JSON, with their numbers; None for a line that is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except ValueError:
                    yield number, None
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None


def text_of(said):
    """Return what a checkpoint's signature covers."""
    return (
        f"licentia audit checkpoint 1\nsize {said['size']}\nhead {said['head']}\nat {said['at']}\nkid {said['kid']}\n"
    ).encode()


def content_hash(entry, form):
    text = json.dumps({**entry, "form": form}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"\x00" + text.encode()).digest()


class Check:
    """One pass over an export, with what was found."""

    def __init__(self, keys):
        self.keys = keys
        self.problems = []  # (number or None, since, text)
        self.found = 0
        self.signed = 0
        self.last_at = None

    def wrong(self, text, number=None, since=None):
        self.found += 1
        if len(self.problems) < LISTED:
            self.problems.append((number, since, text))

    def checkpoint(self, said, where):
        """Return a checkpoint that is signed as it should be; else say why it is not, and return None."""
        try:
            size, kid = said["size"], said["kid"]
            head, signature, text = bytes.fromhex(said["head"]), unb64(said["signature"]), text_of(said)
            if type(size) is not int or size < 1 or len(head) != 32:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            self.wrong(f"{where} is no checkpoint.")
            return None
        if kid not in self.keys:
            self.wrong(f"The checkpoint at {where} is signed by the key {kid}, which is not among the keys.")
            return None
        if not verify(self.keys[kid], signature, text):
            self.wrong(f"The checkpoint at {where} was altered, or never signed.")
            return None
        self.signed += 1
        self.last_at = max(self.last_at or "", said["at"])
        return size, head, said["at"]

    def run(self, path, others):
        """Check the export at `path` against its own checkpoints and those of the other files."""
        expected = {}
        for other in others:
            for number, said in read_lines(other):
                self._expect(expected, self.checkpoint(said, f"line {number} of {other}"))
        for number, said in read_lines(path):
            if isinstance(said, dict) and "checkpoint" in said:
                self._expect(expected, self.checkpoint(said["checkpoint"], f"line {number} of {path}"))
        return self._walk(path, expected)

    def _expect(self, expected, found):
        if found:
            size, head, at = found
            expected.setdefault(size, {}).setdefault(head, at)

    def _walk(self, path, expected):
        lines = read_lines(path)
        _, header = next(lines, (0, None))
        try:
            if header["audit_export"] != 1:
                raise ValueError
            first, last, before = header["first"], header["last"], bytes.fromhex(header["before"])
            number, good = first - 1, first - 1
        except (KeyError, TypeError, ValueError):
            raise Unusable(f"{path} is no export of an audit record.") from None
        if first == 1 and before != bytes(32):
            self.wrong("The chain does not begin as every chain begins.", 1)
        good = self._compare(expected, number, before, good)
        for line, said in lines:
            if isinstance(said, dict) and "checkpoint" in said:
                continue
            try:
                found, form, entry = said["number"], said["form"], said["entry"]
                content, stands = bytes.fromhex(said["content"]), bytes.fromhex(said["chain"])
                if type(found) is not int or not isinstance(entry, (dict, type(None))):
                    raise ValueError
            except (KeyError, TypeError, ValueError):
                self.wrong(f"Line {line} of {path} is no entry.", number + 1)
                continue
            if found <= number:
                self.wrong(f"Number {found} comes after number {number}.", number + 1)
                continue
            if found > number + 1:
                self.wrong(f"After number {number} comes {found}.", number + 1)
            number = found
            if entry is None:
                self.wrong("The entry is gone.", number)
            elif content_hash(entry, form) != content:
                self.wrong(f"The entry {entry.get('id')} is not as it was written.", number)
            elif hashlib.sha256(b"\x02" + before + content).digest() != stands:
                self.wrong(
                    "It does not follow from the one before: something was changed, put in, taken out or moved here, "
                    f"or the chain made anew from a place after {good}.",
                    number,
                    good + 1,
                )
            before = stands
            good = self._compare(expected, number, before, good)
        if number < last:
            self.wrong(f"The export should reach number {last} and ends at {number}.", number + 1)
        beyond = [size for size in expected if size > number]
        if beyond:
            self.wrong(f"There were {max(beyond)} entries once; the export ends at number {number}.", number + 1)
        return first, number, max((size for size in expected if first - 1 <= size <= number), default=None)

    def _compare(self, expected, number, stands, good):
        said = expected.get(number)
        if said is None:
            return good
        for head, at in said.items():
            if head != stands and not any(place and good < place <= number for place, _, _ in self.problems):
                self.wrong(
                    f"The chain up to number {number} is not what the checkpoint of {at} says: something from number "
                    f"{good + 1} on was changed and the chain made anew.",
                    number,
                    good + 1,
                )
        return number if set(said) == {stands} else good


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Check an export of Licentia's audit record.")
    parser.add_argument("export")
    parser.add_argument("--keys", required=True, metavar="FILE", help="the public keys: a JSON Web Key Set")
    parser.add_argument("--checkpoints", action="append", default=[], metavar="FILE", help="checkpoints got elsewhere")
    parser.add_argument("--json", action="store_true", help="answer in one object of JSON")
    asked = parser.parse_args(arguments)
    try:
        check = Check(read_keys(asked.keys))
        first, last, covered = check.run(asked.export, asked.checkpoints)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 2
    problems = sorted(check.problems, key=lambda each: (each[0] is None, each[0] or 0))
    rows = [{"number": number, "since": since, "text": text} for number, since, text in problems]
    good = not check.found and covered is not None
    if asked.json:
        print(
            json.dumps(
                {
                    "good": good,
                    "first_number": first,
                    "last_number": last,
                    "checkpoints": check.signed,
                    "covered_to": covered,
                    "last_checkpoint_at": check.last_at,
                    "first": rows[0] if rows else None,
                    "problems": rows,
                    "more": check.found - len(rows),
                }
            )
        )
    else:
        print(f"Looked at numbers {first} to {last} and {check.signed} signed checkpoints.")
        for row in rows:
            place = f"number {row['number']}: " if row["number"] else ""
            if row["since"] and row["since"] != row["number"]:
                place = f"numbers {row['since']} to {row['number']}: "
            print(f"WRONG: {place}{row['text']}")
        if check.found > len(rows):
            print(f"WRONG: and {check.found - len(rows)} more.")
        if not check.found and covered is None:
            print("No checkpoint covers it: it fits together, but nobody vouches for it.")
        elif not check.found:
            rest = f" Numbers {covered + 1} to {last} have no checkpoint yet." if covered < last else ""
            print(
                f"All is as it was written, up to number {covered} by signature (checkpoint of {check.last_at}).{rest}"
            )
    return 0 if good else 1 if check.found else 2


if __name__ == "__main__":
    sys.exit(main())
