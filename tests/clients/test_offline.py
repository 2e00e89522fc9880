"""A machine that never meets the server: what it believes, and what no clock can win."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from licentia_client.offline import FileRefused, LicenseFile, Machine, make_request

from licensing import activations, crypto, license_files
from licensing.models import License
from tests.factories import AT, BY, make_license

pytestmark = pytest.mark.django_db

FINGERPRINT = "machine-0123456789"
HOUR, DAY = 3_600.0, 86_400.0
ISSUED = AT.timestamp()
LIFE = 30


@dataclass
class Clocks:
    """The clocks of a machine: real time, what its wall clock says instead, and which boot it is."""

    real: float = ISSUED
    shift: float = 0.0
    frozen_at: float | None = None
    boot: int = 1
    booted_at: float = ISSUED - DAY
    runs: bool = True  # the uptime can be trusted; a faked one stands still with the wall clock
    told: list[float] = field(default_factory=list)

    def wall(self) -> float:
        return self.frozen_at if self.frozen_at is not None else self.real + self.shift

    def uptime(self) -> tuple[str, float]:
        return (f"boot-{self.boot}", self.real - self.booted_at if self.runs else 0.0)

    def reboot(self) -> None:
        self.boot, self.booted_at = self.boot + 1, self.real


def make_machine(folder: Path, clocks: Clocks | None = None, fingerprint: str = FINGERPRINT) -> Machine:
    clocks = clocks or Clocks()
    return Machine.open(folder, fingerprint=fingerprint, wall=clocks.wall, uptime=clocks.uptime, traces=())


def reopen(folder: Path, clocks: Clocks | None = None) -> Machine:
    clocks = clocks or Clocks()
    return Machine.open(folder, wall=clocks.wall, uptime=clocks.uptime, traces=())


def issue(machine: Machine, license: License | None = None, **more: Any) -> str:
    request = license_files.read_request(machine.request(), AT)
    license = license or make_license(offline_period=timedelta(days=LIFE))
    return license_files.issue(license=license, request=request, by=BY, at=AT, **more).text


def read(text: str, machine: Machine, **more: Any) -> LicenseFile:
    return LicenseFile.read(text, keys=crypto.jwks(), machine=machine, **more)


def code_of(act: Callable[[], Any]) -> str:
    try:
        act()
    except FileRefused as refused:
        return refused.code
    return "fine"


def test_it_reads_its_license_file(tmp_path):
    license = make_license(offline_period=timedelta(days=LIFE))
    machine = make_machine(tmp_path / "m")

    found = read(issue(machine, license), machine, product=license.product.code)

    assert (found.license, found.product) == (str(license.pk), license.product.code)
    assert found.terms["status"] == "active"
    assert found.expires_at == ISSUED + LIFE * DAY
    assert not found.clock_rolled_back


def test_it_reads_one_that_is_encrypted_to_it(tmp_path):
    machine, stranger = make_machine(tmp_path / "m"), make_machine(tmp_path / "s")
    text = issue(machine, encrypt=True)

    assert code_of(lambda: read(text, stranger)) == "not_authentic"
    assert read(text, machine).license


def test_it_keeps_its_keys_to_itself_and_over_a_restart(tmp_path):
    text = make_request(tmp_path / "m", fingerprint=FINGERPRINT)

    again = Machine.open(tmp_path / "m")

    kept = tmp_path / "m" / "machine.json"
    assert kept.stat().st_mode & 0o077 == 0
    assert again.fingerprint == FINGERPRINT
    assert json.loads(kept.read_text())["signing"] not in text


def test_it_refuses_the_file_of_another_machine(tmp_path):
    license = make_license()
    machine, twin = make_machine(tmp_path / "m"), make_machine(tmp_path / "t")
    other = make_machine(tmp_path / "o", fingerprint="machine-of-another")
    text = issue(machine, license)

    assert code_of(lambda: read(text, twin)) == "wrong_machine"  # same fingerprint, another key
    assert code_of(lambda: read(text, other)) == "wrong_machine"
    assert code_of(lambda: read(text, machine, product="other")) == "wrong_product"
    assert code_of(lambda: read(text, machine, issuer="https://other.example")) == "wrong_product"


def test_it_believes_pinned_keys_only(tmp_path):
    machine = make_machine(tmp_path / "m")
    text = issue(machine)
    stranger = crypto.KeyRing.generate().primary("sign")
    keys = crypto.jwks()["keys"]
    others = [{**key, "x": crypto.b64(stranger.public_bytes())} for key in keys]

    assert code_of(lambda: LicenseFile.read(text, keys={"keys": []}, machine=machine)) == "not_authentic"
    assert code_of(lambda: LicenseFile.read(text, keys={"keys": others}, machine=machine)) == "not_authentic"


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("change", [1, 2, 0x20])
def test_it_accepts_no_file_with_a_byte_flipped(change, encrypt, tmp_path):
    machine = make_machine(tmp_path / "m")
    text = issue(machine, encrypt=encrypt)
    read(text, machine)
    accepted = []
    for position in range(len(text)):
        flipped = text[:position] + chr(ord(text[position]) ^ change) + text[position + 1 :]
        if code_of(lambda flipped=flipped: read(flipped, machine)) == "fine":
            accepted.append(position)

    assert accepted == []


def test_it_accepts_no_other_token_of_the_server(tmp_path):
    """A token of another type is signed by the same key, and is no license file."""
    from licensing import tokens

    machine = make_machine(tmp_path / "m")
    text = issue(machine)
    claims = tokens.read("".join(text.splitlines()[1:-1]), typ=license_files.TYPE)
    for typ in ("license+jwt", "lease+jwt"):
        other = license_files.armour(license_files.LABEL, tokens.sign(claims, typ=typ))
        assert code_of(lambda other=other: read(other, machine)) == "malformed"


# --- the clock --------------------------------------------------------------------------------------


def test_it_expires(tmp_path):
    clocks = Clocks()
    machine = make_machine(tmp_path / "m", clocks)
    text = issue(machine)
    read(text, machine)

    clocks.real = ISSUED + LIFE * DAY - 1
    assert not read(text, machine).clock_rolled_back
    clocks.real += 1
    assert code_of(lambda: read(text, machine)) == "expired"


def test_it_notices_a_clock_turned_back_and_says_so_until_the_server_was_told(tmp_path):
    clocks = Clocks()
    machine = make_machine(tmp_path / "m", clocks)
    text = issue(machine)
    read(text, machine)
    clocks.real += 10 * DAY
    read(text, machine)

    clocks.shift = -9 * DAY
    clocks.real += HOUR
    found = read(text, machine)
    clocks.shift = 0
    later = read(text, reopen(tmp_path / "m", clocks))

    assert found.clock_rolled_back
    assert later.clock_rolled_back
    machine.clock.vouched(clocks.real, told=True)
    clocks.real += 1
    assert not read(text, machine).clock_rolled_back


def test_it_takes_small_corrections_for_what_they_are(tmp_path):
    clocks = Clocks()
    machine = make_machine(tmp_path / "m", clocks)
    text = issue(machine)
    read(text, machine)

    clocks.real += HOUR
    clocks.shift = -200

    assert not read(text, machine).clock_rolled_back


def test_it_heals_a_clock_that_was_far_ahead_by_a_new_file(tmp_path):
    clocks = Clocks(shift=400 * DAY)
    license = make_license(offline_period=timedelta(days=LIFE))
    machine = make_machine(tmp_path / "m", clocks)
    clocks.shift = 0
    text = issue(machine, license)
    read(text, machine)
    clocks.shift = 400 * DAY
    assert code_of(lambda: read(text, machine)) == "expired"
    clocks.shift = 0
    assert code_of(lambda: read(text, machine)) == "expired"

    assert read(issue(machine, license), machine).license


def _constant(days: float) -> Callable[[Clocks, int], None]:
    return lambda clocks, hour: setattr(clocks, "shift", days * DAY if hour else 0.0)


def _sawtooth(clocks: Clocks, hour: int) -> None:
    """Every morning it is the day of the issue again, and the machine was off meanwhile."""
    if hour % 24 == 0:
        clocks.shift = ISSUED - clocks.real
        clocks.reboot()


def _frozen(clocks: Clocks, hour: int) -> None:
    clocks.frozen_at, clocks.runs = ISSUED + 60, False


def _swinging(clocks: Clocks, hour: int) -> None:
    clocks.shift = (400 if hour % 2 else -400) * DAY


def _slipping(clocks: Clocks, hour: int) -> None:
    """Nearly as much back as went by, again and again: a clock that only runs slow."""
    clocks.shift -= HOUR - 1


def _wiping(what: str) -> Callable[[Clocks, int, Path], None]:
    def act(clocks: Clocks, hour: int, folder: Path) -> None:
        clocks.shift = ISSUED - clocks.real
        if hour % 24 == 0 and hour:
            for path in (folder / "clock", folder.with_name(f".{folder.name}.clock")):
                if what in ("both", path.name):
                    path.unlink(missing_ok=True)

    return act


TRAVELS: dict[str, Any] = {
    **{f"{days:+d} days": _constant(days) for days in (-400, -100, -30, -1, 0, 1, 30, 400)},
    "back every morning": _sawtooth,
    "frozen": _frozen,
    "swinging": _swinging,
    "slipping": _slipping,
    "one place wiped": _wiping("clock"),
    "both places wiped": _wiping("both"),
}


@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
def test_it_wins_nothing_by_travelling_in_time(travel, tmp_path):
    """Threat T9: asked every hour for five lives, a file is never of use for longer than the one it was issued for,
    and not at all once two have gone by."""
    clocks, folder, life = Clocks(), tmp_path / "m", 5
    text = issue(make_machine(folder, clocks), make_license(offline_period=timedelta(days=life)))
    used, last_use = 0, 0
    read(text, reopen(folder, clocks))
    for hour in range(1, 5 * life * 24):
        clocks.real = ISSUED + hour * HOUR
        travel(clocks, hour, folder) if travel.__code__.co_argcount == 3 else travel(clocks, hour)
        if code_of(lambda: read(text, reopen(folder, clocks))) == "fine":
            used, last_use = used + 1, hour

    assert used <= life * 24
    assert last_use < 2 * life * 24


def test_it_refuses_when_what_it_remembered_is_gone(tmp_path):
    clocks, folder = Clocks(), tmp_path / "m"
    machine = make_machine(folder, clocks)
    license = make_license()
    text = issue(machine, license)
    read(text, machine)
    (folder / "clock").unlink()
    (tmp_path / ".m.clock").unlink()

    assert code_of(lambda: read(text, reopen(folder, clocks))) == "state_lost"
    new = issue(reopen(folder, clocks), license)
    assert code_of(lambda: read(text, reopen(folder, clocks))) == "superseded"
    assert read(new, reopen(folder, clocks)).license
    assert read(text, reopen(folder, clocks)).license  # the clock goes on from the new one


@pytest.mark.parametrize("place", ["m/clock", ".m.clock"])
def test_it_goes_by_the_other_place_when_one_was_edited(place, tmp_path):
    clocks = Clocks()
    machine = make_machine(tmp_path / "m", clocks)
    text = issue(machine)
    read(text, machine)
    path = tmp_path / place
    old = path.read_text()
    clocks.real += (LIFE + 1) * DAY
    assert code_of(lambda: read(text, machine)) == "expired"

    clocks.shift = -LIFE * DAY
    for content in (old, re.sub(r'"mark": [\d.]+', f'"mark": {ISSUED}', path.read_text()), "{}", ""):
        path.write_text(content)
        assert code_of(lambda: read(text, reopen(tmp_path / "m", clocks))) == "expired"


@pytest.mark.parametrize("name", ["fingerprint", "pending", "fresh", "name"])
def test_it_notices_an_edit_of_what_it_keeps(name, tmp_path):
    make_machine(tmp_path / "m")
    kept = tmp_path / "m" / "machine.json"
    document = json.loads(kept.read_text())
    document[name] = not document[name] if name == "fresh" else "edited-0123456789-edited"
    kept.write_text(json.dumps(document))

    assert code_of(lambda: reopen(tmp_path / "m")) == "state_lost"


def test_it_takes_a_file_without_a_request_as_new_only_once(tmp_path):
    """A file for a machine that was activated before has no nonce: no later request may make it new again."""
    license = make_license(offline_period=timedelta(days=LIFE))
    activation = activations.activate(license=license, fingerprint=FINGERPRINT, by=BY, at=AT).activation
    text = license_files.issue(license=license, activation=activation, by=BY, at=AT).text
    clocks = Clocks()
    machine = make_machine(tmp_path / "m", clocks)
    assert read(text, machine).license
    clocks.real += (LIFE + 1) * DAY
    assert code_of(lambda: read(text, machine)) == "expired"

    clocks.shift = -(LIFE + 1) * DAY
    machine.request()

    assert code_of(lambda: read(text, machine)) == "expired"


def test_it_holds_under_a_real_clock_that_is_turned_back(tmp_path):
    """The same in a process of its own, whose clock libfaketime turns where there is one; else by its own hands."""
    license = make_license(offline_period=timedelta(days=LIFE))
    text = issue(make_machine(tmp_path / "m"), license)
    (tmp_path / "file.lic").write_text(text)
    (tmp_path / "keys.json").write_text(json.dumps(crypto.jwks()))
    program = textwrap.dedent(
        """
        import json, sys, time
        from pathlib import Path
        from licentia_client.offline import FileRefused, LicenseFile, Machine
        folder, shift = Path(sys.argv[1]), float(sys.argv[2])
        how = {"wall": lambda: time.time() + shift} if shift else {}
        try:
            found = LicenseFile.read(
                (folder / "file.lic").read_text(),
                keys=json.loads((folder / "keys.json").read_text()),
                machine=Machine.open(folder / "m", traces=(), **how),
            )
            print("rolled back" if found.clock_rolled_back else "fine")
        except FileRefused as refused:
            print(refused.code)
        """
    )
    faketime = shutil.which("faketime")

    def run(days: float) -> str:
        """Return what the program says when its clock reads so many days after the issue."""
        at = ISSUED + days * DAY
        command = [sys.executable, "-c", program, str(tmp_path)]
        if faketime:
            command = [faketime, "-f", f"@{_said(at)}", *command, "0"]
        else:
            import time

            command.append(str(at - time.time()))
        environment = {**os.environ, "PYTHONPATH": "clients/python", "TZ": "UTC"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()

    said = [(days, run(days)) for days in (0, 5, -400, 4, LIFE - 1, -400, LIFE + 1, 1, -400, 400, 0)]

    assert said == [
        (0, "fine"),
        (5, "fine"),
        (-400, "rolled back"),
        (4, "rolled back"),
        (LIFE - 1, "rolled back"),  # until the server is told
        (-400, "rolled back"),
        *((days, "expired") for days in (LIFE + 1, 1, -400, 400, 0)),
    ]


def _said(at: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}"
