"""The key's format: every typing error is told, every way to write a key is read, none is left in a text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licensing import keyformat
from licensing.keyformat import ALPHABET, Mistyped, generate, parse, redact, written

KEYS = [generate() for _ in range(20)]
DASHES = "-‐‑‒–—―−﹘﹣-"


def body(key: str) -> str:
    return parse(key)[4:]


def test_it_writes_a_key_of_seven_groups_of_five():
    key = generate()

    assert [len(group) for group in key.split("-")] == [4, 5, 5, 5, 5, 5, 5, 5]
    assert key.startswith("LIC1-")
    assert set(key[4:].replace("-", "")) <= set(ALPHABET)
    assert parse(key) == key.replace("-", "")
    assert written(parse(key)) == key


def test_it_makes_no_key_twice_and_uses_the_whole_alphabet():
    keys = {generate() for _ in range(3_000)}

    assert len(keys) == 3_000
    assert {sign for key in keys for sign in body(key)} == set(ALPHABET)


def test_it_refuses_every_single_substitution():
    accepted = []
    for key in KEYS:
        plain = body(key)
        for place in range(len(plain)):
            for sign in ALPHABET:
                if sign != plain[place]:
                    typo = "LIC1" + plain[:place] + sign + plain[place + 1 :]
                    accepted += _accepted(typo)

    assert accepted == []


def test_it_refuses_every_swap_of_neighbours():
    accepted = []
    for key in KEYS:
        plain = body(key)
        for place in range(len(plain) - 1):
            swapped = plain[:place] + plain[place + 1] + plain[place] + plain[place + 2 :]
            if swapped != plain:
                accepted += _accepted("LIC1" + swapped)

    assert accepted == []


def test_it_refuses_a_character_left_out_or_doubled():
    plain = body(KEYS[0])
    typos = [plain[:place] + plain[place + 1 :] for place in range(35)]
    typos += [plain[:place] + plain[place] + plain[place:] for place in range(35)]

    assert [typo for typo in typos if _accepted("LIC1" + typo)] == []


def _accepted(text: str) -> list[str]:
    try:
        return [parse(text)]
    except Mistyped:
        return []


@pytest.mark.parametrize(
    "write",
    [
        str.lower,
        lambda key: key.replace("-", ""),
        lambda key: key.replace("-", " "),
        lambda key: f"  {key}\r\n",
        lambda key: key.replace("-", "_"),
        lambda key: key.replace("0", "O"),
        lambda key: key.replace("0", "o"),
        lambda key: key[:5] + key[5:].replace("1", "I"),
        lambda key: key[:5] + key[5:].replace("1", "l"),
        lambda key: key.lower().replace("-", "\t"),
        lambda key: "\n".join(key.split("-")),
        lambda key: f"“{key}”",
        lambda key: "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in key),
        *(lambda key, dash=dash: key.replace("-", dash) for dash in DASHES),
    ],
)
def test_it_reads_a_key_however_it_is_written(write):
    key = next(key for key in iter(generate, None) if {"0", "1"} <= set(key[5:]))

    assert parse(write(key)) == parse(key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "LIC1",
        "LIC1-",
        "lsk_" + "a" * 43,
        "LIC2" + KEYS[0][4:],
        "LIC" + KEYS[0][4:],
        KEYS[0][5:],
        KEYS[0] + "0",
        KEYS[0][:-1],
        KEYS[0] + KEYS[0],
        KEYS[0] + " " * 200,
        "LIC1-" + "U" * 35,
        "LIC1-" + "٣" * 35,
        "LIC1-" + "Ａ" * 35,
        "LIC1-" + "ß" * 17 + "A",
        "\x00" * 40,
        "LIC1-" + "\u0301" * 60,
        "🔑" * 40,
        "LIC1-" + "Ⅷ" * 35,
    ],
    ids=lambda text: f"{len(text)} signs",  # the keys are random, the names must not be
)
def test_it_refuses_what_is_no_key_and_never_repeats_it(text):
    with pytest.raises(Mistyped) as refused:
        parse(text)

    assert refused.value.code == "license_key_mistyped"
    assert refused.value.pointer == "/license_key"
    assert len(text) < 6 or text not in str(refused.value)


@settings(max_examples=500)
@given(st.text(max_size=220))
def test_it_refuses_any_text_with_the_one_error(text):
    assert _accepted(text) == []


def test_it_says_how_many_characters_there_are_of_how_many():
    with pytest.raises(Mistyped, match="34 of 35"):
        parse(KEYS[0][:-1])


@pytest.mark.parametrize(
    "write",
    [
        str,
        str.lower,
        lambda key: key.replace("-", ""),
        lambda key: key.replace("-", "").lower(),
        lambda key: key.replace("-", " "),
        lambda key: key.replace("-", "_"),
        lambda key: key.replace("-", "%20"),
        lambda key: key.replace("-", "+"),
        lambda key: key.replace("-", "."),
        lambda key: key.replace("-", "\\n"),
        lambda key: key.replace("-", "\n"),
        lambda key: key.replace("-", " - "),
        lambda key: key[:5] + key[5:].replace("0", "O").replace("1", "l"),
        lambda key: "LIC1-" + "-".join(body(key)[place : place + 7] for place in range(0, 35, 7)),
        lambda key: "LIC1-" + "-".join(body(key)[place : place + 4] for place in range(0, 35, 4)),
        lambda key: "LIC1-" + body(key)[:20] + "-" + body(key)[20:],
        *(lambda key, dash=dash: key.replace("-", dash) for dash in DASHES),
    ],
)
@pytest.mark.parametrize("around", ["{}", "key={}&x=1", 'said "{}".', "({})", "a{}b"])
def test_it_leaves_no_key_in_a_text_however_it_is_written(write, around):
    for key in KEYS[:5]:
        text = around.format(write(key))

        redacted = redact(text)

        assert _plain(body(key)[5:20]) not in _plain(redacted)
        assert _plain(body(key)[:10]) not in _plain(redacted)
        assert _plain(key[-5:]) in _plain(redacted)
        assert redacted.startswith(around.partition("{}")[0])
        assert redacted.endswith(around.partition("{}")[2])


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).replace("\\n", "").replace("%20", "").lower()
    return "".join(sign for sign in folded if sign.isalnum()).translate(str.maketrans("oil", "011"))


def test_it_redacts_every_key_of_a_text_and_mistyped_ones_too():
    one, two = KEYS[:2]
    typo = one[:-1] + ("A" if one[-1] != "A" else "B")

    redacted = redact(f"{one} {two}\n{typo}")

    assert redacted.count("LIC1-•••-") == 3
    assert not {one[5:10], two[5:10]} & set(redacted.replace("-", " ").split())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No key in here.",
        "LIC1",
        "LIC1-ABCDE-12345",
        "LIC1 stands before every license key that was ever printed on paper by us",
        "https://example.com/LIC1/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "a 0198f2a0-0000-7000-8000-000000000001 b",
    ],
)
def test_it_leaves_other_text_as_it_is(text):
    assert redact(text) == text


def test_it_redacts_a_long_text_in_no_time():
    text = "LIC1-" * 20_000 + "0" * 20_000 + "- " * 20_000

    assert keyformat.redact(text)
