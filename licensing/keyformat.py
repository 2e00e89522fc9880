"""The format of a license key, and nothing that needs a database: write one, read one, redact them from text.

`LIC1-` and seven groups of five Crockford base32 characters: 28 random ones (140 bits) and 7 of CRC-32 over
prefix and random part. The checksum is no security: it tells a typing error from an unknown key without a look
at the database. Source: CONTRACT "License key".
"""

import re
import secrets
import unicodedata
import zlib

from licensing.errors import Invalid

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PREFIX = "LIC1"
RANDOM, CHECK, GROUP = 28, 7, 5
LONGEST = 200

_FOLD = str.maketrans({"O": "0", "I": "1", "L": "1"})
# Anything that looks like a key, in any of the forms a person or program may write it; used to redact. What may
# stand between two characters is atomic: no text makes this backtrack.
PATTERN = re.compile(r"LIC1((?:(?>(?:%[0-9A-F]{2}|\\[nrt]|[\W_]){0,3})[0-9A-Z]){35})", re.IGNORECASE)
_BETWEEN = re.compile(r"%[0-9A-F]{2}|\\[nrt]|[\W_]", re.IGNORECASE)
_AS_PRINTED = re.compile(r"[-_ ]?(?:[0-9A-Z]{5}[- ]?){6}[0-9A-Z]{5}", re.IGNORECASE)


class Mistyped(Invalid):
    """The license key was mistyped."""

    code = "license_key_mistyped"


# As it is printed: what nearly every key that comes over the wire looks like.
_WRITTEN = re.compile(r"LIC1(?:-[0-9A-HJKMNP-TV-Z]{5}){7}")
_TO_BASE32 = str.maketrans(ALPHABET, "0123456789abcdefghijklmnopqrstuv")


def _fits(body: str) -> bool:
    """Return whether the last seven characters are the checksum of the others; all are of the alphabet."""
    return int(body[RANDOM:].translate(_TO_BASE32), 32) == zlib.crc32((PREFIX + body[:RANDOM]).encode())


def _check(random_part: str) -> str:
    value = zlib.crc32((PREFIX + random_part).encode())
    return "".join(ALPHABET[value >> 5 * place & 31] for place in reversed(range(CHECK)))


def generate() -> str:
    """Return a new key in its written form, `LIC1-XXXXX-…`."""
    random_part = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return written(PREFIX + random_part + _check(random_part))


def written(canonical: str) -> str:
    """Return the grouped form of a canonical key."""
    body = canonical[len(PREFIX) :]
    return "-".join([PREFIX, *(body[start : start + GROUP] for start in range(0, len(body), GROUP))])


def parse(text: str) -> str:
    """Return the canonical form of a key somebody typed: case, spaces and any dash do not matter, O is 0, I and L
    are 1.

    Raises:
        Mistyped: it is no key, or its checksum does not fit. The message never repeats the key.
    """
    if _WRITTEN.fullmatch(text):
        body = text[len(PREFIX) :].replace("-", "")
        if _fits(body):
            return PREFIX + body
    if len(text) > LONGEST:
        raise Mistyped("That is too long for a license key.", pointer="/license_key")
    folded = unicodedata.normalize("NFKC", text).upper()
    plain = "".join(sign for sign in folded if sign.isalnum())
    if not plain.startswith(PREFIX):
        raise Mistyped("A license key starts with LIC1-.", pointer="/license_key")
    body = plain[len(PREFIX) :].translate(_FOLD)
    if len(body) != RANDOM + CHECK:
        raise Mistyped(
            f"A license key has seven groups of five characters after LIC1-; {len(body)} of 35 characters are there.",
            pointer="/license_key",
        )
    if not set(body) <= set(ALPHABET) or not _fits(body):
        raise Mistyped("The license key has a typing error: its checksum does not fit.", pointer="/license_key")
    return PREFIX + body


def redact(text: str) -> str:
    """Return `text` with every license key in it, in any grouping, cut down to its last five characters."""
    return PATTERN.sub(_cut, text)


def _cut(match: re.Match[str]) -> str:
    body = _BETWEEN.sub("", match.group(1))
    if not _AS_PRINTED.fullmatch(match.group(1)) and sum(sign.isdigit() for sign in body) < 2:
        return match.group()  # a sentence that begins with LIC1; a key without two digits is one in 30,000
    return f"LIC1-•••-{body[-5:].upper()}"
