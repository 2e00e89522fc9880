"""Take each defence away and see that a test notices: python -m tests.security.mutations [THREAT…]

Each mutation is one small change of the source that removes one defence. It is made in a copy of the tree, never in
the tree itself, and there only the named test is run, which must fail. The test must also pass without the change.
Prints a table, and exits 1 when a mutant survives, a test fails anyway, or a text is not found exactly once any more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.servers import Postgres, Redis

ROOT = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "var", "__pycache__", ".*_cache", "staticfiles", ".hypothesis")
WIRE, STORED = "tests/security/test_threats_wire.py::", "tests/security/test_threats_stored.py::"
USAGE, BILLING = "tests/security/test_threats_usage.py::", "tests/security/test_threats_billing.py::"
KEYS, LOAD = "tests/security/test_threats_keys.py::", "tests/security/test_threats_load.py::"
HOOKS = "tests/security/test_threats_webhooks.py::"
AUDIT = "tests/security/test_threats_audit.py::"
CLIENT = "clients/python/licentia_client/"
NOTICED = "tests/security/test_threats_anomalies.py::"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One defence taken away, and the test that must notice. `old` is in the file exactly once."""

    threat: str
    defence: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "T4",
        "who asks is noted",
        "licensing/gate.py",
        "    observations.used(license_id, body.fingerprint, request.address if server is None else None, at)\n",
        "",
        NOTICED + "test_t04_a_key_on_many_machines_is_noticed_by_machines_and_networks",
    ),
    Mutation(
        "T4",
        "more machines than a license allows are suspicious",
        "licensing/rules/known.py",
        'facts["machines"] > allowed(facts["limit"], by)',
        'facts["machines"] > 10 * allowed(facts["limit"], by)',
        NOTICED + "test_t04_a_key_on_many_machines_is_noticed_by_machines_and_networks",
    ),
    Mutation(
        "T7",
        "a missing number is named",
        "billing/suspicions.py",
        "(before IS NULL OR sequence > before + 1)",
        "(before IS NULL OR sequence > before + 2)",
        NOTICED + "test_t07_every_number_of_one_event_in_a_hundred_dropped_is_named_within_a_day",
    ),
    Mutation(
        "T10",
        "trials are told by their machines",
        "licensing/watching.py",
        "product=trial.product_id, activations__fingerprint__in=prints",
        "pk=trial.pk, activations__fingerprint__in=prints",
        NOTICED + "test_t10_the_same_machine_tries_out_again_under_another_name",
    ),
    Mutation(
        "T11",
        "a key that nobody has is noted",
        "licensing/gate.py",
        '        observations.note("unknown_key", observations.block(request.address), digests[0].hex()[:16], at)\n',
        "",
        NOTICED + "test_t11_somebody_who_tries_keys_is_noticed_and_no_key_is_kept",
    ),
    Mutation(
        "T15",
        "whose pages are opened is noted",
        "licensing/admin/base.py",
        "            self.opened(request, row, at)\n",
        "",
        NOTICED + "test_t15_staff_who_go_through_customers_are_noticed",
    ),
    Mutation(
        "T1",
        "the client checks the answer's signature",
        CLIENT + "answers.py",
        "            key.verify(signature, ",
        "            (signature, ",
        "tests/clients/test_python_client.py::test_it_does_not_believe_a_server_with_another_key",
    ),
    Mutation(
        "T1",
        "the signature covers the body",
        "licensing/gate.py",
        """        covered = '"@status" "content-digest" "@method";req "@target-uri";req'\n"""
        "        base = (\n"
        """            f'"@status": {answer.status}\\n"content-digest": {digest}\\n'\n""",
        """        covered = '"@status" "@method";req "@target-uri";req'\n"""
        "        base = (\n"
        """            f'"@status": {answer.status}\\n'\n""",
        WIRE + "test_t01_no_byte_of_an_answer_may_be_another",
    ),
    Mutation(
        "T2",
        "the signature covers the request's nonce",
        "licensing/gate.py",
        """            covered += ' "x-licentia-nonce";req'\n"""
        """            base += f'"x-licentia-nonce";req: {nonce}\\n'\n""",
        "            pass\n",
        WIRE + "test_t02_an_answer_fits_no_other_request",
    ),
    Mutation(
        "T3",
        "nonce and counter are remembered",
        "licensing/gate.py",
        "    nonces.accept(activation_id=activation_id, nonce=signed.nonce, counter=signed.counter, at=at)\n",
        "",
        WIRE + "test_t03_a_hundred_copies_at_once_have_one_effect",
    ),
    Mutation(
        "T5",
        "a reused counter is a copy",
        "licensing/nonces.py",
        "if known[3] then return 'cloned' end\n",
        "",
        WIRE + "test_t05_a_copy_is_noticed_within_two_requests_of_both",
    ),
    Mutation(
        "T5",
        "a license key does not speak for a machine with a key",
        "licensing/gate.py",
        "require_signed_clients or found.picture.facts.keyed:",
        "require_signed_clients:",
        WIRE + "test_t05_a_copied_fingerprint_alone_speaks_for_nobody",
    ),
    Mutation(
        "T6",
        "the counter of seats moves only below its ceiling",
        "licensing/seats.py",
        '        .filter(Q(seats_ceiling=None) | Q(seats_used__lt=F("seats_ceiling")))\n',
        "",
        STORED + "test_t06_the_last_seat_and_the_last_machine_are_given_once",
    ),
    Mutation(
        "T6",
        "the counter of machines moves only below its ceiling",
        "licensing/activations.py",
        '            .filter(Q(activations_ceiling=None) | Q(activations_used__lt=F("activations_ceiling")))\n',
        "",
        STORED + "test_t06_the_last_seat_and_the_last_machine_are_given_once",
    ),
    Mutation(
        "T8",
        "an event's id is looked up before it is counted",
        "billing/metering.py",
        "    known = _known_ids(events)\n    accepted",
        "    known: dict[tuple[UUID, str], tuple[bytes, datetime, datetime]] = {}\n    accepted",
        USAGE + "test_t08_what_is_sent_again_is_counted_once",
    ),
    Mutation(
        "T8",
        "other content under the same id is refused",
        "billing/metering.py",
        "    if digest != event.digest:\n        error = EventConflict()\n",
        "    if False:\n        error = EventConflict()\n",
        USAGE + "test_t08_an_id_is_not_counted_again_under_another_time",
    ),
    Mutation(
        "T9",
        "a token ends within a day",
        "licensing/gate.py",
        "TOKEN_LIFE = timedelta(hours=24)",
        "TOKEN_LIFE = timedelta(days=400)",
        WIRE + "test_t09_the_server_goes_by_its_own_clock_alone",
    ),
    Mutation(
        "T9",
        "offline, a clock turned back is noticed",
        CLIENT + "offline.py",
        'rolled_back = state["rolled_back"] or behind > TOLERANCE_SECONDS',
        'rolled_back = state["rolled_back"]',
        "tests/clients/test_offline.py::test_it_notices_a_clock_turned_back_and_says_so_until_the_server_was_told",
    ),
    Mutation(
        "T11",
        "another customer's license is not found",
        "licensing/pictures.py",
        """where += f" AND l.customer_id = {place['customer']}\"""",
        """where += f" AND l.customer_id <> {place['customer']}\"""",
        KEYS + "test_t11_it_says_the_same_of_an_unknown_key_as_of_anothers",
    ),
    Mutation(
        "T11",
        "what is foreign is not answered from memory",
        "licensing/validation.py",
        '        question = Question.of("id", str(license_id), scope, caller.customer_id)\n'
        "    found = snapshots.get(question)\n",
        '        question = Question.of("id", str(license_id), scope)\n'
        "    found = snapshots.get(question)\n"
        "    if found is not None and found.picture.snapshot.customer_id != str(caller.customer_id):\n"
        "        found = None\n",
        KEYS + "test_t11_it_takes_the_same_steps_and_waits_alike",
    ),
    Mutation(
        "T11",
        "what is not found takes one time",
        "licensing/snapshots.py",
        "    time.sleep(max(read_at + NOT_FOUND_SECONDS - time.monotonic(), 0.0))\n",
        "",
        KEYS + "test_t11_it_takes_the_same_steps_and_waits_alike",
    ),
    Mutation(
        "T11",
        "a replaced key names nothing",
        "licensing/pictures.py",
        " AND k.retired_at IS NULL",
        "",
        KEYS + "test_t11_it_says_the_same_of_an_unknown_key_as_of_a_replaced_one",
    ),
    Mutation(
        "T12",
        "digests are keyed",
        "licensing/keys.py",
        'row.digest_kid, row.digest = crypto.digest(canonical, kind="license-key")',
        'row.digest_kid, row.digest = "none", __import__("hashlib").sha256(canonical).digest()',
        STORED + "test_t12_a_copy_of_the_database_gives_no_key_away",
    ),
    Mutation(
        "T12",
        "what can be shown again is sealed",
        "licensing/keys.py",
        "row.sealed = crypto.seal(canonical, place_of(row))",
        "row.sealed = canonical.decode()",
        STORED + "test_t12_a_copy_of_the_database_gives_no_key_away",
    ),
    Mutation(
        "T13",
        "terms are checked at read",
        "licensing/pictures.py",
        "    proofs.check_read(snapshot, ",
        "    (snapshot, ",
        STORED + "test_t13_it_notices_an_edit_by_hand_at_read",
    ),
    Mutation(
        "T13",
        "holds are part of the proof",
        "licensing/proofs.py",
        '"holds": sorted(holds)',
        '"holds": []',
        STORED + "test_t13_it_notices_a_hold_lifted_by_hand",
    ),
    Mutation(
        "T13",
        "rules prove nothing anew that others wrote",
        "licensing/lifecycle.py",
        "    proofs.check(row)\n",
        "",
        "tests/licensing/test_proofs.py::test_a_rule_does_not_prove_what_others_wrote",
    ),
    Mutation(
        "T13",
        "a sealed value opens only in its row",
        "licensing/crypto.py",
        '("v1", self.table, self.row, self.field, kid)',
        '("v1", self.table, self.field, kid)',
        "tests/licensing/test_keys.py::test_it_shows_no_key_that_was_moved_from_another_license",
    ),
    Mutation(
        "T14",
        "what an entry says is recomputed",
        "licensing/verifying.py",
        "chain.content_hash(form, {name: written[name] for name in chain.FORMS[form]}) != content:",
        "False:",
        AUDIT + "test_t14_every_tampering_is_found_and_its_place_named",
    ),
    Mutation(
        "T14",
        "a link follows from the one before",
        "licensing/verifying.py",
        "chain.chain_hash(before, content) != stands:",
        "False:",
        AUDIT + "test_t14_every_tampering_is_found_and_its_place_named",
    ),
    Mutation(
        "T14",
        "checkpoints kept elsewhere are compared",
        "licensing/verifying.py",
        "        if stands == each.head:\n",
        "        if True:\n",
        AUDIT + "test_t14_every_tampering_is_found_and_its_place_named",
    ),
    Mutation(
        "T14",
        "a checkpoint is believed for its signature",
        "licensing/verifying.py",
        "                crypto.verify_with(public, one.text().encode(), one.signature)\n",
        "                pass\n",
        AUDIT + "test_t14_every_tampering_is_found_and_its_place_named",
    ),
    Mutation(
        "T14",
        "an entry outside the chain is named",
        "licensing/verifying.py",
        "            if one not in noted:\n",
        "            if False:\n",
        AUDIT + "test_t14_every_tampering_is_found_and_its_place_named",
    ),
    Mutation(
        "T18",
        "a message of the payment gateway is signed",
        "billing/gateway/at_stripe.py",
        "stripe.Webhook.construct_event(body, signature, self._webhook_secret, tolerance=TOLERANCE_SECONDS)",
        "stripe.Event.construct_from(__import__('json').loads(body), None)",
        BILLING + "test_t18_no_forged_webhook_is_taken",
    ),
    Mutation(
        "T18",
        "its signature has one spelling",
        "billing/gateway/at_stripe.py",
        "        if not _SIGNATURE.fullmatch(signature):\n",
        "        if False:\n",
        BILLING + "test_t18_no_forged_webhook_is_taken",
    ),
    Mutation(
        "T18",
        "it is minutes old at most",
        "billing/gateway/at_stripe.py",
        "tolerance=TOLERANCE_SECONDS)",
        "tolerance=10**9)",
        BILLING + "test_t18_an_old_message_or_another_s_secret_is_not_taken",
    ),
    Mutation(
        "T18",
        "what it says is not believed",
        "billing/gateway/at_stripe.py",
        "            return _invoice(self._get(invoice_id))\n\n    def invoices_since",
        "            raw = self._get(invoice_id)\n"
        "            raw.update({'status': 'paid', 'amount_paid': raw.total})\n"
        "            return _invoice(raw)\n\n    def invoices_since",
        BILLING + "test_t18_a_message_signed_by_whoever_stole_the_secret_pays_nothing",
    ),
    Mutation(
        "T19",
        "what a name resolves to is looked at",
        "licensing/posting.py",
        "        if not acceptable(str(address[0])):\n",
        "        if False:\n",
        HOOKS + "test_t19_a_name_that_leads_inside_is_not_connected_to",
    ),
    Mutation(
        "T19",
        "every address of a name is looked at",
        "licensing/posting.py",
        "    for *_, address in found[0]:\n",
        "    for *_, address in found[0][:1]:\n",
        HOOKS + "test_t19_one_inside_address_among_public_ones_is_enough_to_refuse",
    ),
    Mutation(
        "T19",
        "the connection goes to the address that was looked at",
        "licensing/posting.py",
        "            plain.connect(address)\n",
        "            plain.connect(socket.getaddrinfo(parts.hostname, port)[0][4])\n",
        HOOKS + "test_t19_a_name_that_changes_its_mind_is_asked_once_and_connected_as_answered",
    ),
    Mutation(
        "T19",
        "an IPv4 address inside an IPv6 one is seen",
        "licensing/posting.py",
        "        if embedded is not None:\n",
        "        if False:\n",
        HOOKS + "test_t19_a_name_that_leads_inside_is_not_connected_to",
    ),
    Mutation(
        "T19",
        "an address typed in is looked at when the endpoint is made",
        "licensing/posting.py",
        "    if literal is not None and not acceptable(parts.hostname):\n",
        "    if False:\n",
        HOOKS + "test_t19_an_address_that_leads_inside_makes_no_endpoint",
    ),
    Mutation(
        "T19",
        "this machine is refused unless the settings allow it",
        "licensing/posting.py",
        "        return bool(settings.WEBHOOKS_TO_LOOPBACK)\n",
        "        return True\n",
        HOOKS + "test_t19_this_machine_is_connected_to_only_where_the_settings_say_so",
    ),
    Mutation(
        "T19",
        "an answer has one time for all of it",
        "licensing/posting.py",
        "        self._connected.settimeout(_left(self.until))\n",
        "        self._connected.settimeout(5.0)\n",
        HOOKS + "test_f19_whoever_does_not_answer_properly_costs_bounded_time_and_bytes",
    ),
    Mutation(
        "T19",
        "an answer has so many bytes",
        "licensing/posting.py",
        "        if self._most <= 0:\n",
        "        if False:\n",
        HOOKS + "test_f19_whoever_does_not_answer_properly_costs_bounded_time_and_bytes",
    ),
    Mutation(
        "T19",
        "a target that is down is left alone, and not the others",
        "licensing/outbox.py",
        "                    resting[message.target] = error.until\n                _note",
        "                    pass\n                _note",
        "tests/licensing/test_outbox.py::test_it_tries_nothing_else_of_a_target_that_is_down",
    ),
    Mutation(
        "T20",
        "an address that fails is refused before anything is looked up",
        "licensing/gate.py",
        "    if address_blocked:\n",
        "    if False:\n",
        LOAD + "test_t20_the_others_hardly_notice_a_flood",
    ),
    Mutation(
        "T20",
        "buckets have a bottom, with Redis, without and while it is away",
        "licensing/throttles.py",
        "            if wait > _ROUNDING_SECONDS:\n",
        "            if False:\n",
        "tests/api/test_throttles.py::test_it_counts_a_license_wherever_its_key_is_used",
    ),
    Mutation(
        "T21",
        "a change is announced before it commits",
        "licensing/snapshots.py",
        "    feed.announce(license_id, feed.ALWAYS if revision is None else revision)\n",
        "    pass\n",
        STORED + "test_t21_a_revoked_license_is_refused_at_the_next_question",
    ),
    Mutation(
        "T22",
        "without Redis the database is asked",
        "licensing/snapshots.py",
        '        value = _GET([f"{_prefix()}snapshot:{name}"], f"{_prefix()}tombstone:")\n'
        "    except redis.RedisError:\n"
        "        return None\n",
        '        value = _GET([f"{_prefix()}snapshot:{name}"], f"{_prefix()}tombstone:")\n'
        "    except redis.RedisError:\n"
        "        raise\n",
        STORED + "test_t22_without_redis_good_is_good_and_bad_is_bad",
    ),
    Mutation(
        "T23",
        "a disabled key verifies nothing",
        "licensing/crypto.py",
        "        if key.state in MENDS:\n",
        '        if key.state == "destroyed":\n',
        WIRE + "test_t23_a_leaked_signing_key_is_out_of_use_within_seconds",
    ),
    Mutation(
        "T24",
        "with a key missing nothing is changed",
        "licensing/crypto.py",
        "    if _incomplete:\n        raise",
        "    if False:\n        raise",
        STORED + "test_t24_a_lost_ring_stops_changes_is_named_and_comes_back",
    ),
    Mutation(
        "T25",
        "a token of another type is not ours",
        "licensing/tokens.py",
        ' or header["typ"] != typ:',
        ":",
        WIRE + "test_t25_a_token_of_another_library_is_read_and_only_of_our_kind",
    ),
    Mutation(
        "T25",
        "a request is signed by one algorithm",
        "licensing/signatures.py",
        ' or found.get("alg", "ed25519") != "ed25519":',
        ":",
        WIRE + "test_t25_no_bent_signature_gets_an_answer",
    ),
    Mutation(
        "T25",
        "a license key alone is refused where clients must sign",
        "licensing/gate.py",
        "if found.picture.snapshot.require_signed_clients or ",
        "if ",
        WIRE + "test_t25_nothing_unsigned_speaks_where_clients_must_sign",
    ),
)


def found(mutation: Mutation, root: Path = ROOT) -> int:
    """Return how often the mutation's text is in its file."""
    return (root / mutation.file).read_text().count(mutation.old)


def passes(test: str, tree: Path) -> bool:
    """Return whether the test passes in a tree. What breaks before the test begins says nothing: it is run again.

    Raises:
        RuntimeError: it could not be run at all.
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
            cwd=tree,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        last = done.stdout.rstrip().rpartition("\n")[2]
        if done.returncode in (0, 1) and " error" not in last:
            return done.returncode == 0
    raise RuntimeError(f"{test} was not run:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")


def killed(mutation: Mutation) -> bool:
    """Return whether the named test fails without the defence."""
    with tempfile.TemporaryDirectory(prefix="licentia-mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
        (tree / ".venv").symlink_to((ROOT / ".venv").resolve())
        file = tree / mutation.file
        file.write_text(file.read_text().replace(mutation.old, mutation.new))
        return not passes(mutation.test, tree)


def main(threats: list[str]) -> int:
    """Run the mutations of these threats, all if none is named."""
    with Postgres() as database, Redis() as redis:  # one of each for all runs, where none is given
        os.environ.setdefault("TEST_DATABASE_URL", database.create_database("mutations"))
        os.environ.setdefault("TEST_REDIS_URL", redis.url())
        return _run([each for each in MUTATIONS if not threats or each.threat in threats])


def _run(chosen: list[Mutation]) -> int:
    wrong = 0
    for test in dict.fromkeys(each.test for each in chosen):
        if not passes(test, ROOT):
            print(f"FAILS without any change: {test}", flush=True)
            wrong += 1
    print("| threat | defence taken away | test that must fail | |\n| --- | --- | --- | --- |", flush=True)
    for mutation in chosen:
        began = time.monotonic()
        if found(mutation) != 1:
            said = f"its text is found {found(mutation)} times"
        elif killed(mutation):
            said = "killed"
        else:
            said = "SURVIVED"
        wrong += said != "killed"
        name = mutation.test.partition("::")[2]
        print(f"| {mutation.threat} | {mutation.defence} | `{name}` | {said} |", flush=True)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
