"""What must not stand in a log is taken out here, whoever logs it: license keys and API secrets."""

import logging
import re
from typing import Any

from licensing import keyformat

_SECRET = re.compile(r"lsk_[A-Za-z0-9_-]{20,}")


class RedactingFilter(logging.Filter):
    """Cuts keys and secrets down to their last characters, in message, arguments and traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = _redacted(record.msg)
        if record.args:
            if isinstance(record.args, dict):
                record.args = {name: _redacted(value) for name, value in record.args.items()}
            else:
                record.args = tuple(_redacted(value) for value in record.args)
        if record.exc_info and isinstance(record.msg, str):
            # The formatter would print the traceback itself, unredacted: it becomes part of the message.
            trace = redact(logging.Formatter().formatException(record.exc_info))
            record.msg, record.args = f"{record.getMessage()}\n{trace}", None
            record.exc_info = record.exc_text = None
        return True


def redact(text: str) -> str:
    """Return `text` without license keys and API secrets."""
    return _SECRET.sub(lambda match: f"lsk_•••{match.group()[-4:]}", keyformat.redact(text))


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return redact(value)
        case dict():
            return {name: _redacted(item) for name, item in value.items()}
        case list() | tuple():
            return type(value)(_redacted(item) for item in value)
        case BaseException():
            return redact(repr(value))
        case _:
            return value
