"""Logs: no license key and no API secret leaves, whoever logs it and however."""

import io
import logging
from collections import namedtuple
from dataclasses import dataclass

import pytest
import structlog
from django.conf import settings

from portal.logs import RedactingFilter, redact

KEY = "LIC1-Q316Z-Y7CS1-DC314-5RESX-EESJ3-48R3T-2NKC4"
SECRET = "lsk_" + "AbC-_9" * 7 + "x"
Pair = namedtuple("Pair", "key other")


@dataclass
class Request:
    """Something whose repr says what it holds."""

    body: str


class Spoken:
    """Something whose str says what its repr does not."""

    def __str__(self):
        return f"the key {KEY}"


@pytest.fixture
def log():
    """A logger that writes through the configured console handler, and what it has written."""
    config = settings.LOGGING
    sink = io.StringIO()
    handler = logging.StreamHandler(sink)
    options = dict(config["formatters"]["line"])
    handler.setFormatter(options.pop("()")(**options))
    handler.addFilter(RedactingFilter())
    logger = logging.getLogger("tests.redaction")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, sink
    logger.removeHandler(handler)
    logger.propagate = True


def leaks(text: str) -> list[str]:
    forms = (KEY, KEY.replace("-", ""), KEY.lower(), KEY[5:29], SECRET, SECRET[4:30])
    return [form for form in forms if form.lower() in text.lower()]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (f"key {KEY}", ()),
        ("key %s", (KEY,)),
        ("key %r and %d", (KEY, 7)),
        ("key %(key)s", ({"key": KEY},)),
        ("keys %s", ([KEY, "other"],)),
        ("keys %s", ((KEY, 1),)),
        ("pair %s", (Pair(KEY, 1),)),
        ("keys %s", ({KEY},)),
        ("named %s", ({"license_key": KEY},)),
        ("named %s", ({KEY: 1},)),
        ("deep %s", ({"a": [{"b": (KEY,)}]},)),
        ("error %s", (ValueError(f"bad {KEY}"),)),
        ("bytes %s", (KEY.encode(),)),
        ("bytes %r", (bytearray(SECRET.encode()),)),
        ("request %s", (Request(KEY),)),
        ("request %r", (Request(f"Bearer {SECRET}"),)),
        ("spoken %s", (Spoken(),)),
        (f"Authorization: Bearer {SECRET}", ()),
        ("secret %s of %.1f", (SECRET, 1.5)),
        (ValueError(KEY), ()),
        (Request(KEY), ()),
    ],
)
def test_it_leaves_no_secret_in_a_line(log, message, arguments):
    logger, sink = log

    logger.warning(message, *arguments)

    assert leaks(sink.getvalue()) == []
    assert "•••" in sink.getvalue()


def test_it_leaves_no_secret_in_a_traceback_and_keeps_the_traceback(log):
    logger, sink = log

    try:
        raise ValueError(f"cannot use {KEY}") from RuntimeError(f"because of {SECRET}")
    except ValueError:
        logger.exception("it failed")

    said = sink.getvalue()
    assert leaks(said) == []
    for kept in ("Traceback", "ValueError", "RuntimeError", "test_logs.py", KEY[-5:]):
        assert kept in said


def test_it_leaves_no_secret_in_a_traceback_that_another_handler_formatted_first(log):
    logger, sink = log
    first = logging.StreamHandler(io.StringIO())
    logger.handlers.insert(0, first)
    try:
        raise ValueError(f"cannot use {KEY}")
    except ValueError:
        logger.exception("it failed")
    finally:
        logger.removeHandler(first)

    assert leaks(sink.getvalue()) == []
    assert "ValueError" in sink.getvalue()


def test_it_leaves_no_secret_in_a_stack(log):
    logger, sink = log

    eval("logger.warning('here', stack_info=True)", {"logger": logger}, {KEY: 1})

    assert leaks(sink.getvalue()) == []


def test_it_leaves_no_secret_in_structured_lines(log):
    _, sink = log
    bound = structlog.get_logger("tests.redaction").bind(license_key=KEY)

    bound.info("event", nested={"secret": SECRET, "list": [KEY]}, request=Request(KEY), raw=KEY.encode())
    try:
        raise ValueError(KEY)
    except ValueError:
        bound.exception("failed")

    assert leaks(sink.getvalue()) == []
    assert "ValueError" in sink.getvalue()
    assert sink.getvalue().count("\n") >= 2


def test_it_never_breaks_a_line_it_does_not_understand(log):
    logger, sink = log

    class Silent:
        def __repr__(self):
            raise RuntimeError("no words")

        __str__ = __repr__

    logger.warning("numbers %d %s %.2f", 1, None, 2.5)
    logger.warning("pair %s", Pair(1, 2))
    logger.warning("%s", object())
    logger.raiseExceptions = False
    RedactingFilter().filter(logging.LogRecord("x", 30, "", 1, "%s", (Silent(),), None))

    assert "numbers 1 None 2.50" in sink.getvalue()


def test_it_is_on_every_handler():
    assert all("redact" in handler["filters"] for handler in settings.LOGGING["handlers"].values())


@pytest.mark.parametrize("text", ["", "nothing to see", "lsk_short", "0198f2a0-0000-7000-8000-000000000001"])
def test_it_leaves_other_text_as_it_is(text):
    assert redact(text) == text
