"""The form of a fingerprint: the client's digest of its machine, compared and never interpreted."""

import re

from licensing.errors import Invalid

PATTERN = re.compile(r"[A-Za-z0-9._:+/=-]{16,128}")
FORM = "A fingerprint has 16 to 128 characters of A-Z a-z 0-9 . _ : + / = -"


def checked(fingerprint: str) -> str:
    """Return the fingerprint if it is well-formed. Raises `Invalid`."""
    if not PATTERN.fullmatch(fingerprint):
        raise Invalid(FORM, pointer="/fingerprint")
    return fingerprint
