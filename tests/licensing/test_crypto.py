"""The key ring: what is sealed opens only where it belongs, whatever happens to the ring or the value."""

import base64
import json
import multiprocessing
import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from licensing import crypto
from licensing.crypto import KeyRing, KeyRingError, NotAuthentic, Place, make_key

HERE = Place("licensing_licensekey", "0198f2a0-0000-7000-8000-000000000001", "sealed")


@pytest.fixture
def ring(settings, tmp_path):
    """A ring of this test's own; call it with another to put that in its place."""

    def use(new: KeyRing) -> KeyRing:
        settings.KEYRING = new.dump()
        crypto.forget()
        return crypto.ring()

    settings.KEYRING_FILE = str(tmp_path / "never-used.json")
    use(KeyRing.generate())
    yield use
    crypto.forget()


def rotated(old: KeyRing, purpose: crypto.Purpose) -> KeyRing:
    """Return the ring with a new primary; the former one still opens, finds and verifies."""
    former = [replace(key, state="active") if key.purpose == purpose else key for key in old.keys]
    return KeyRing([*former, make_key(purpose, state="primary")])


# --- seal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"secret value", b"\x00" * 33, "größer".encode(), b"z" * 100_000])
def test_it_opens_what_it_sealed(ring, value):
    sealed = crypto.seal(value, HERE)

    assert crypto.unseal(sealed, HERE) == value
    assert sealed.split(".")[:2] == ["v1", crypto.ring().primary("seal").kid]
    if value:
        assert value not in sealed.encode()


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, row="0198f2a0-0000-7000-8000-000000000002"),
        replace(HERE, field="digest"),
        replace(HERE, table="licensing_credential"),
        replace(HERE, row=HERE.row.upper()),
        Place("", "", ""),
        # The parts in other portions: lengths are bound too.
        Place(HERE.table + HERE.row[0], HERE.row[1:], HERE.field),
        Place(HERE.table, HERE.row + HERE.field[0], HERE.field[1:]),
    ],
)
def test_it_does_not_open_in_another_place(ring, elsewhere):
    sealed = crypto.seal(b"secret", HERE)

    with pytest.raises(NotAuthentic):
        crypto.unseal(sealed, elsewhere)


def test_it_never_seals_the_same_value_twice_alike(ring):
    sealed = {crypto.seal(b"secret", HERE) for _ in range(500)}

    assert len({each.split(".")[2] for each in sealed}) == 500


def test_it_refuses_a_value_with_any_one_byte_flipped(ring):
    sealed = crypto.seal(b"a secret value", HERE)
    version, kid, nonce, ciphertext = sealed.split(".")

    opened = []
    for part, text in ((2, nonce), (3, ciphertext)):
        data = crypto.unb64(text)
        for place in range(len(data)):
            for bit in range(8):
                flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
                parts = [version, kid, nonce, ciphertext]
                parts[part] = crypto.b64(flipped)
                opened += _opened(".".join(parts))

    assert opened == []


def test_it_refuses_a_value_with_any_one_character_changed_dropped_or_added(ring):
    sealed = crypto.seal(b"a secret value", HERE)
    changed = []
    for place in range(len(sealed)):
        for sign in ("A", "B", "-", "_", ".", "=", " ", "é", ""):
            changed.append(sealed[:place] + sign + sealed[place + 1 :])
        changed.append(sealed[:place] + "A" + sealed[place:])
        changed.append(sealed[:place])

    assert [each for each in changed if each != sealed and _opened(each)] == []


@pytest.mark.parametrize("length", [*range(12), *range(13, 20), 128, 129])
def test_it_refuses_a_nonce_or_ciphertext_of_any_other_length(ring, length):
    version, kid, nonce, ciphertext = crypto.seal(b"", HERE).split(".")
    other = crypto.b64(bytes(length))

    assert _opened(f"{version}.{kid}.{other}.{ciphertext}") == []
    assert _opened(f"{version}.{kid}.{nonce}.{other}") == []


@pytest.mark.parametrize("sealed", ["", "v1", "v1...", "v2.a.b.c", "....", "v1.a.b.c.d", "\x00", "v1.é.b.c"])
def test_it_refuses_what_was_never_sealed(ring, sealed):
    assert _opened(sealed) == []


def _opened(sealed: str) -> list[bytes]:
    # Only these two: whoever opens a value handles them, anything else would be a crash.
    try:
        return [crypto.unseal(sealed, HERE)]
    except (NotAuthentic, KeyRingError):
        return []


def test_it_names_the_key_a_ring_lacks(ring):
    sealed = crypto.seal(b"secret", HERE)
    kid = sealed.split(".")[1]
    ring(KeyRing.generate())

    with pytest.raises(KeyRingError, match=kid):
        crypto.unseal(sealed, HERE)


def test_it_does_not_open_under_a_key_of_another_purpose(ring):
    sealed = crypto.seal(b"secret", HERE).split(".")
    sealed[1] = crypto.ring().primary("digest").kid

    with pytest.raises(KeyRingError, match="digest-"):
        crypto.unseal(".".join(sealed), HERE)


def test_it_does_not_open_under_another_key_of_the_same_purpose(ring):
    sealed = crypto.seal(b"secret", HERE).split(".")
    ring(rotated(crypto.ring(), "seal"))
    sealed[1] = crypto.ring().primary("seal").kid

    with pytest.raises(NotAuthentic):
        crypto.unseal(".".join(sealed), HERE)


# --- rotation ---------------------------------------------------------------------------------------


def test_it_opens_finds_and_verifies_what_the_former_primary_made(ring):
    sealed = crypto.seal(b"secret", HERE)
    _, digest = crypto.digest(b"secret", kind="license-key")
    kid, signature = crypto.sign(b"message")
    for purpose in crypto.PURPOSES:
        ring(rotated(crypto.ring(), purpose))

    assert crypto.unseal(sealed, HERE) == b"secret"
    assert digest in crypto.digests(b"secret", kind="license-key")
    crypto.verify(b"message", signature, kid)
    assert kid in [key["kid"] for key in crypto.jwks()["keys"]]


def test_it_makes_new_values_under_the_new_primary_only(ring):
    before = crypto.ring()
    for purpose in crypto.PURPOSES:
        ring(rotated(crypto.ring(), purpose))

    made = {
        crypto.seal(b"x", HERE).split(".")[1],
        crypto.digest(b"x", kind="k")[0],
        crypto.sign(b"x")[0],
    }

    assert made == {crypto.ring().primary(purpose).kid for purpose in crypto.PURPOSES}
    assert made.isdisjoint(key.kid for key in before.keys)


def test_it_uses_a_pending_key_for_nothing_new_but_knows_it(ring):
    pending = [make_key(purpose) for purpose in crypto.PURPOSES]
    ring(KeyRing([*crypto.ring().keys, *pending]))

    assert crypto.sign(b"x")[0] not in {key.kid for key in pending}
    assert crypto.seal(b"x", HERE).split(".")[1] not in {key.kid for key in pending}
    assert pending[2].kid in [key["kid"] for key in crypto.jwks()["keys"]]
    assert len(crypto.digests(b"x", kind="k")) == 2


def test_it_looks_under_the_primary_first(ring):
    for _ in range(3):
        ring(rotated(crypto.ring(), "digest"))

    assert crypto.digests(b"x", kind="k")[0] == crypto.digest(b"x", kind="k")[1]
    assert len(set(crypto.digests(b"x", kind="k"))) == 4


# --- digest, sign -----------------------------------------------------------------------------------


def test_it_digests_the_same_value_of_another_kind_otherwise(ring):
    digests = {
        crypto.digest(value, kind=kind)[1]
        for value, kind in (
            (b"secret", "license-key"),
            (b"secret", "credential"),
            (b"y\x00secret", "x"),
            (b"secret", "x"),
        )
    }

    assert len(digests) == 4
    assert all(len(digest) == 32 for digest in digests)


def test_it_refuses_a_signature_over_anything_else(ring):
    kid, signature = crypto.sign(b"message")
    flipped = [signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :] for place in range(64)]

    for message, made, by in [
        (b"messagf", signature, kid),
        (b"message", b"", kid),
        (b"message", signature + b"\x00", kid),
        (b"message", b"\x00" * 64, kid),
        (b"message", signature, "sign-nobody"),
        (b"message", signature, crypto.ring().primary("seal").kid),
        *((b"message", each, kid) for each in flipped),
    ]:
        with pytest.raises(NotAuthentic):
            crypto.verify(message, made, by)


def test_it_publishes_only_public_halves(ring):
    published = json.dumps(crypto.jwks())

    for key in crypto.ring().keys:
        assert crypto.b64(key.material) not in published
        assert base64.b64encode(key.material).decode() not in published
    assert {frozenset(key) for key in crypto.jwks()["keys"]} == {frozenset({"kty", "crv", "use", "alg", "kid", "x"})}


def test_it_shows_no_key_material_when_printed(ring):
    for key in crypto.ring().keys:
        shown = repr(key) + str(key) + repr(crypto.ring())
        assert repr(key.material)[2:-1] not in shown
        assert key.material.hex() not in shown


@pytest.mark.parametrize("text", ["a", "AB", "ab==", "a b", "a+b/", "é", "AAA=", "////", "A\n", "AA\n"])
def test_it_reads_only_canonical_base64url(text):
    with pytest.raises(NotAuthentic):
        crypto.unb64(text)


# --- the ring's file --------------------------------------------------------------------------------


def test_it_keeps_the_ring_in_a_private_file_made_on_first_use(settings, tmp_path):
    path = tmp_path / "var" / "keyring.json"
    settings.KEYRING, settings.KEYRING_FILE, settings.KEYRING_CREATE = "", str(path), True
    crypto.forget()

    made = crypto.ring()
    crypto.forget()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert crypto.ring().dump() == made.dump()
    assert [each.name for each in path.parent.iterdir()] == ["keyring.json"]
    crypto.forget()


def test_it_never_makes_a_ring_where_it_must_not(settings, tmp_path):
    settings.KEYRING, settings.KEYRING_CREATE = "", False
    for file in (str(tmp_path / "keyring.json"), ""):
        settings.KEYRING_FILE = file
        crypto.forget()
        with pytest.raises(KeyRingError):
            crypto.ring()
    crypto.forget()

    assert list(tmp_path.iterdir()) == []


def _write_first(path: str, barrier, results) -> None:
    mine = KeyRing.generate()
    barrier.wait()
    crypto.write(mine, Path(path), replace=False)
    results.put(KeyRing.parse(Path(path).read_text()).dump())


def test_it_lets_the_first_of_racing_processes_win_and_all_read_its_ring(tmp_path):
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / f"{attempt}.json"
        barrier, results = context.Barrier(8), context.Queue()
        processes = [context.Process(target=_write_first, args=(str(path), barrier, results)) for _ in range(8)]
        for process in processes:
            process.start()
        read = {results.get(timeout=20) for _ in processes}
        for process in processes:
            process.join(20)

        assert len(read) == 1
        assert [process.exitcode for process in processes] == [0] * 8
    assert sorted(each.name for each in tmp_path.iterdir()) == [f"{attempt}.json" for attempt in range(5)]


def test_it_reads_the_ring_once_for_all_threads(settings, tmp_path):
    settings.KEYRING, settings.KEYRING_FILE = "", str(tmp_path / "keyring.json")
    crypto.forget()
    barrier, rings = threading.Barrier(16), []

    def use():
        barrier.wait()
        rings.append(crypto.ring())

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({id(ring) for ring in rings}) == 1
    crypto.forget()


def test_it_leaves_the_old_ring_whole_when_a_write_fails(tmp_path, monkeypatch):
    path = tmp_path / "keyring.json"
    crypto.write(KeyRing.generate(), path)
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crypto.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        crypto.write(KeyRing.generate(), path)

    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keyring.json"]


def _ring_with(**changes) -> str:
    document = json.loads(KeyRing.generate().dump())
    document["keys"][0] |= changes
    return json.dumps(document)


def _ring_of(*purposes_and_states) -> str:
    rows = [
        {
            "kid": f"k{number}",
            "purpose": purpose,
            "state": state,
            "created_at": "2026",
            "material": base64.b64encode(bytes(32)).decode(),
        }
        for number, (purpose, state) in enumerate(purposes_and_states)
    ]
    return json.dumps({"version": 1, "keys": rows})


MALFORMED = {
    "empty": "",
    "no JSON": "not json",
    "a list": "[]",
    "null": "null",
    "no keys": "{}",
    "keys are null": '{"keys": null}',
    "no key at all": '{"keys": []}',
    "keys are words": '{"keys": ["a"]}',
    "a key without material": json.dumps({"keys": [{"kid": "a", "purpose": "seal", "state": "primary"}]}),
    "material too short": _ring_with(material=base64.b64encode(bytes(31)).decode()),
    "material too long": _ring_with(material=base64.b64encode(bytes(33)).decode()),
    "material no base64": _ring_with(material="*" * 43 + "="),
    "material a number": _ring_with(material=7),
    "unknown purpose": _ring_with(purpose="encrypt"),
    "purpose a list": _ring_with(purpose=["seal"]),
    "unknown state": _ring_with(state="retired"),
    "a key id with a dot": _ring_with(kid="seal.1"),
    "an empty key id": _ring_with(kid=""),
    "a key id longer than the column": _ring_with(kid="k" * 33),
    "a key id with a quote": _ring_with(kid='a"b'),
    "one id twice": json.dumps({"keys": json.loads(KeyRing.generate().dump())["keys"] * 2}),
    "two primaries": _ring_of(("seal", "primary"), ("seal", "primary"), ("digest", "primary"), ("sign", "primary")),
    "truncated": KeyRing.generate().dump()[:-20],
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_it_refuses_a_malformed_ring_in_words_without_its_material(text):
    with pytest.raises(KeyRingError) as refused:
        KeyRing.parse(text)

    assert "." in str(refused.value)
    for row in _rows(text):
        assert str(row.get("material", "none"))[:20] not in str(refused.value)


@pytest.mark.parametrize(
    ("keys", "lacking"),
    [
        ((("seal", "active"), ("digest", "primary"), ("sign", "primary")), "seal"),
        ((("seal", "primary"), ("digest", "primary")), "sign"),
    ],
    ids=["no primary", "a purpose missing"],
)
def test_it_does_without_a_purpose_until_that_is_needed(keys, lacking):
    found = KeyRing.parse(_ring_of(*keys))

    assert found.primary("digest")
    with pytest.raises(KeyRingError, match=lacking):
        found.primary(lacking)


def _rows(text: str) -> list[dict]:
    try:
        return [row for row in json.loads(text)["keys"] if isinstance(row, dict)]
    except (ValueError, TypeError, KeyError):
        return []


def test_it_refuses_a_ring_file_that_is_no_text(settings, tmp_path):
    path = tmp_path / "keyring.json"
    path.write_bytes(b"\xff\xfe\x00rubbish")
    settings.KEYRING, settings.KEYRING_FILE = "", str(path)
    crypto.forget()

    with pytest.raises(KeyRingError):
        crypto.ring()
    crypto.forget()


def test_it_takes_a_ring_back_from_its_own_dump():
    made = KeyRing.generate()

    assert KeyRing.parse(made.dump()).keys == made.keys


def test_it_encrypts_to_somebody_else_as_joserfc_decrypts():
    from joserfc import jwe
    from joserfc.jwk import OKPKey

    key = OKPKey.generate_key("X25519")
    public = crypto.unb64(key.as_dict(private=False)["x"])

    text = crypto.encrypt_to(public, b"for you alone", typ="t+jwe", cty="t+jwt")

    opened = jwe.decrypt_compact(text, key, algorithms=["ECDH-ES", "A256GCM"])
    assert opened.plaintext == b"for you alone"
    assert opened.headers()["cty"] == "t+jwt"
    with pytest.raises(crypto.NotAuthentic):
        crypto.encrypt_to(bytes(32), b"x", typ="t", cty="t")


def test_it_opens_nothing_for_another_type_of_token():
    from licensing import tokens

    text = tokens.sign({"sub": "x"}, typ="lease+jwt")

    assert tokens.read(text, typ="lease+jwt") == {"sub": "x"}
    with pytest.raises(crypto.NotAuthentic):
        tokens.read(text)
