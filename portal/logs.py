"""What must not stand in a log is taken out here, whoever logs it: license keys, API secrets and those of the payment
gateway."""

import logging
import re
from typing import Any

from licensing import keyformat

_SECRET = re.compile(r"(?<![A-Za-z0-9])(lsk_|(?:sk|rk)_(?:live|test)_|whsec_)[A-Za-z0-9_-]{16,}")


class RedactingFilter(logging.Filter):
    """Cuts keys and secrets down to their last characters, in message, arguments and traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = _redacted(record.msg)
        if record.args:
            record.args = _redacted(record.args)
        if record.exc_info and isinstance(record.msg, str):
            # The formatter would print the traceback itself, unredacted: it becomes part of the message.
            trace = redact(logging.Formatter().formatException(record.exc_info))
            record.msg, record.args = f"{record.getMessage()}\n{trace}", None
            record.exc_info = record.exc_text = None
        return True


def redact(text: str) -> str:
    """Return `text` without license keys and API secrets."""
    return _SECRET.sub(lambda match: f"{match.group(1)}•••{match.group()[-4:]}", keyformat.redact(text))


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {_redacted(name): _redacted(item) for name, item in value.items()}
        case list():
            return [_redacted(item) for item in value]
        case tuple():
            return tuple(_redacted(item) for item in value)
        case None | bool() | int() | float():
            return value
    try:
        # Whatever else it is, a formatter will ask for its words: kept as it is when they hold nothing to cut.
        said, shown = str(value), repr(value)
    except Exception:
        return f"a {type(value).__name__} without words"
    return value if redact(said) == said and redact(shown) == shown else redact(shown if said in shown else said)
