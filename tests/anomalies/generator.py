"""A population of licenses and what happens to them in four weeks, from a seed.

Every license lives one scenario: what its machines and people do, hour by hour. A label is the cause ("the key was
posted in a forum on this day"), known because it was simulated; no threshold of any rule is read here. At least a third
of the licenses are benign look-alikes: what they do resembles a cause and is none.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2026, 3, 9, tzinfo=UTC)  # a Monday; the end of a month lies within, two before it
DAYS = 28
HISTORY_DAYS = 63


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation: of which kind, of whom, and when. `used` is a request; its value is "fingerprint address"."""

    at: datetime
    kind: str
    subject: str
    value: str


@dataclass(frozen=True, slots=True)
class Episode:
    """That a cause was at work: what a rule should notice of one object between two instants."""

    rule: str
    subject: str
    scenario: str
    start: datetime
    end: datetime


@dataclass(slots=True)
class Simulated:
    """One license, with the rows that are not observations."""

    id: str
    scenario: str
    benign: bool
    limit: int
    product: int = 0
    mail: str = ""
    trial: bool = False
    issued_at: datetime = START - 200 * DAY
    revoked_at: datetime | None = None
    seats: list[tuple[datetime, datetime]] = field(default_factory=list)
    usage: dict[datetime, float] = field(default_factory=dict)
    validates: set[datetime] = field(default_factory=set)
    events: list[tuple[int, datetime, datetime]] = field(default_factory=list)  # number, occurred, received


@dataclass(slots=True)
class World:
    seed: int
    days: int
    licenses: list[Simulated] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
    reveals: list[tuple[datetime, str]] = field(default_factory=list)
    scenario_of: dict[str, str] = field(default_factory=dict)
    benign: set[str] = field(default_factory=set)
    known_as: dict[str, str] = field(default_factory=dict)  # a network, and whose doing it is


def make(seed: int, *, rounds: int, days: int = DAYS) -> World:
    """Return a population: each round is one license of every scenario, and some networks and staff."""
    world = World(seed, days)
    chance = random.Random(f"anomalies {seed}")
    for number in range(rounds):
        for name, scenario in SCENARIOS.items():
            _Life(world, chance, name, number).live(scenario)
        for name, scenario in OTHERS.items():
            _Life(world, chance, name, number, of_license=False).live(scenario)
    world.seen.sort(key=lambda one: one.at)
    return world


class _Life:
    """What one license does: its machines, where they are, when they ask."""

    def __init__(self, world: World, chance: random.Random, name: str, number: int, *, of_license: bool = True) -> None:
        self.world, self.chance, self.name = world, chance, name
        self.id = f"{name}-{number}"
        self.end = START + world.days * DAY
        self.license = Simulated(self.id, name, name in LOOK_ALIKES, chance.choice((1, 2, 3, 5, 10, 25, 50)))
        if of_license:
            world.licenses.append(self.license)
        world.scenario_of[self.id] = name
        if name in LOOK_ALIKES:
            world.benign.add(self.id)
        self.office = self.network()
        self.off: set[int] = set()  # days on which nobody is there

    def live(self, scenario: Callable[["_Life"], None]) -> None:
        scenario(self)

    # --- chance ---

    def network(self) -> str:
        return f"{self.chance.randint(11, 99)}.{self.chance.randint(0, 255)}.{self.chance.randint(0, 255)}"

    def address(self, network: str) -> str:
        return f"{network}.{self.chance.randint(1, 254)}"

    def fingerprint(self) -> str:
        return f"{self.chance.getrandbits(96):024x}"

    def somewhere(self, lasting: int = 1, *, workday: bool = False) -> int:
        """Return the day an incident begins, not one of the first three."""
        while True:
            day = self.chance.randrange(3, self.world.days - lasting)
            if not workday or (START + day * DAY).weekday() < 6 - lasting:
                return day

    def during(self, day: int, first: float = 7.0, last: float = 17.0) -> datetime:
        return START + day * DAY + timedelta(hours=self.chance.uniform(first, last))

    def label(self, rule: str, start: datetime, end: datetime, subject: str = "") -> None:
        self.world.episodes.append(Episode(rule, subject or self.id, self.name, start, end))

    # --- doing ---

    def note(self, at: datetime, kind: str, value: str, subject: str = "") -> None:
        self.world.seen.append(Seen(at, kind, subject or self.id, value))

    def use(self, at: datetime, fingerprint: str, network: str) -> None:
        self.note(at, "used", f"{fingerprint} {self.address(network)}")

    def work(self, machines: list[str], places: Callable[[str, int, int], str] | None = None) -> None:
        """Have machines ask in the hours somebody works at them."""
        habits = {one: (self.chance.uniform(7, 9.5), self.chance.uniform(6, 9)) for one in machines}
        for day in range(self.world.days):
            weekend = (START + day * DAY).weekday() >= 5
            for one in machines:
                if day in self.off or self.chance.random() > (0.08 if weekend else 0.92):
                    continue
                begins, lasts = habits[one]
                for hour in range(int(begins), int(begins + lasts) + 1):
                    at = START + day * DAY + timedelta(hours=hour + self.chance.random() * 0.98)
                    self.use(at, one, places(one, day, hour) if places else self.office)

    def machines(self, part: float = 1.0) -> list[str]:
        return [self.fingerprint() for _ in range(max(1, round(self.license.limit * part)))]

    def consume(
        self, factor: Callable[[datetime], float] = lambda hour: 1.0, *, around_the_clock: bool = False
    ) -> None:
        """Have usage reported: by the hour of day and week, with noise, for the weeks before, too."""
        level = math.exp(self.chance.uniform(math.log(80), math.log(3000)))
        for number in range(-HISTORY_DAYS * 24, self.world.days * 24):
            hour = START + number * HOUR
            if number >= 0 and number // 24 in self.off:
                continue
            weekend = hour.weekday() >= 5
            if around_the_clock:
                shape = 0.6 + 0.4 * math.sin((hour.hour - 6) / 24 * 2 * math.pi)
            else:
                shape = (
                    0.0 if weekend or not 8 <= hour.hour < 18 else 0.6 + 0.4 * math.sin((hour.hour - 8) / 10 * math.pi)
                )
            quantity = level * shape * factor(hour) * self.chance.lognormvariate(0, 0.18)
            if quantity >= 1:
                self.license.usage[hour] = round(quantity)
                if number >= 0:
                    self.license.validates.add(hour)

    def count_events(self, lost: Callable[[datetime], bool], late: float = 0.0) -> None:
        """Have numbered events sent, some of them hours late and out of order, some lost on the way."""
        number, at = self.chance.randint(1, 10_000), START - 2 * DAY
        while at < self.end:
            at += timedelta(minutes=self.chance.expovariate(1 / 12))
            number += 1
            if not lost(at):
                delay = self.chance.uniform(1, 8) if self.chance.random() < late else self.chance.uniform(0, 0.02)
                self.license.events.append((number, at, at + timedelta(hours=delay)))


# --- causes -----------------------------------------------------------------------------------------


def leaked_key(life: _Life) -> None:
    """The key of a small license is posted somewhere; strangers all over the world use it for a day or two."""
    life.license.limit = life.chance.choice((1, 2, 3, 5, 10))
    life.work(life.machines())
    day, lasting = life.somewhere(2), life.chance.choice((1, 2))
    start = life.during(day, 6, 9)
    end = start + timedelta(hours=14 if lasting == 1 else 34)
    for _ in range(round(life.chance.lognormvariate(math.log(70), 0.45)) + 12):
        stranger, home = life.fingerprint(), life.network()
        at = start + (end - start) * life.chance.random() ** 2 * 0.8
        for _ in range(life.chance.randint(3, 9)):  # starts it again and again, or leaves it open
            if at < end:
                life.use(at, stranger, home)
            at += timedelta(minutes=life.chance.uniform(15, 75))
    life.label("key_sharing", start, end)
    life.label("network_sharing", start, end)


def shared_in_the_building(life: _Life) -> None:
    """Another company on the same floor uses the license, behind the same address."""
    life.license.limit = life.chance.choice((2, 3, 5, 10, 25))
    life.work(life.machines(life.chance.uniform(0.8, 1)))
    day, lasting = life.somewhere(4, workday=True), life.chance.randint(1, 3)
    start = START + day * DAY + 7 * HOUR
    end = start + lasting * DAY
    others = [life.fingerprint() for _ in range(max(5, round(life.license.limit * life.chance.uniform(0.5, 1.6))))]
    for one in others:
        for each in range(lasting):
            for hour in sorted(life.chance.sample(range(8, 18), 5)):
                life.use(START + (day + each) * DAY + timedelta(hours=hour + life.chance.random()), one, life.office)
    life.label("key_sharing", start, end)


def scripted_activations(life: _Life) -> None:
    """A script activates one invented machine after another, to see what a key is worth."""
    life.license.limit = life.chance.choice((1, 2, 3, 5, 10))
    life.work(life.machines())
    start = life.during(life.somewhere())
    at = start
    for _ in range(round(life.chance.lognormvariate(math.log(60), 0.5)) + 14):
        made = life.fingerprint()
        life.use(at, made, life.office)
        life.note(at, "attempt", made)
        at += timedelta(seconds=life.chance.uniform(1, 12))
    life.label("activation_burst", start, at)
    life.label("key_sharing", start, at)


def seats_passed_around(life: _Life) -> None:
    """A few seats serve a whole department: each is released when one leaves, assigned when the next begins."""
    life.license.limit = life.chance.choice((1, 2, 3, 5))
    life.work(life.machines())
    day, lasting = life.somewhere(3), life.chance.randint(1, 3)
    for each in range(lasting):
        for _ in range(life.license.limit):
            at = START + (day + each) * DAY + timedelta(hours=life.chance.uniform(6, 8))
            turns = life.chance.randint(6, 11) + (2 if life.license.limit == 1 else 0)
            for _ in range(turns):
                gone = at + timedelta(hours=13 / turns) * life.chance.uniform(0.8, 1.1)
                life.license.seats.append((at, gone))
                at = gone + timedelta(minutes=life.chance.uniform(1, 5))
    life.label("seat_rotation", START + day * DAY, START + (day + lasting) * DAY)


def clock_turned_back(life: _Life) -> None:
    """Somebody turns the clock back each morning so that a trial never ends."""
    machine = life.machines(0.1)[:1]
    life.work(machine)
    day, lasting = life.somewhere(7), life.chance.randint(4, 7)
    for each in range(lasting):
        life.note(life.during(day + each, 7, 10), "clock", machine[0])
    life.label("clock_tampering", START + day * DAY, START + (day + lasting) * DAY)


def forged_signatures(life: _Life) -> None:
    """Somebody who copied an installation without its key signs as it, with one of their own."""
    life.work(life.machines())
    start = life.during(life.somewhere())
    at, origin = start, life.network()
    life.world.known_as[f"{origin}.0/24"] = life.id
    for _ in range(life.chance.randint(20, 300)):
        life.note(at, "signature", f"{origin}.0/24")
        at += timedelta(seconds=life.chance.expovariate(1 / 12))
    life.label("bad_signatures", start, at)


def revoked_and_used(life: _Life) -> None:
    """A license revoked for fraud, whose machines ask on and on."""
    life.license.revoked_at = START + life.somewhere(3) * DAY - 3 * DAY
    start = life.license.revoked_at + DAY
    end = start + life.chance.randint(1, 4) * DAY
    for one in (life.fingerprint() for _ in range(life.chance.randint(2, 12))):
        at = life.license.revoked_at + timedelta(hours=life.chance.uniform(0, 6))
        while at < end:
            life.note(at, "revoked", one)
            at += timedelta(hours=life.chance.uniform(1, 9))
    life.label("use_after_revocation", start, end)


def usage_stolen(life: _Life) -> None:
    """A leaked credential, and somebody who uses it for their own ends for some hours."""
    start = life.during(life.somewhere(), 0, 14)
    start = start.replace(minute=0, second=0, microsecond=0)
    end = start + life.chance.randint(2, 9) * HOUR
    times = life.chance.lognormvariate(math.log(14), 0.5) + 3
    around = life.chance.random() < 0.5
    life.consume(around_the_clock=around)
    peak = max(life.license.usage.values())
    hour = start
    while hour < end:
        life.license.usage[hour] = round(peak * times * life.chance.uniform(0.5, 1.2)) + 60
        hour += HOUR
    life.label("usage_spike", start, end)


def usage_withheld(life: _Life) -> None:
    """The program runs as ever; a firewall keeps its reports from arriving."""
    day, lasting = life.somewhere(3, workday=True), life.chance.randint(2, 3)
    life.consume(around_the_clock=life.chance.random() < 0.4)
    start, end = START + day * DAY, START + (day + lasting) * DAY
    for hour in [hour for hour in life.license.usage if start <= hour < end]:
        del life.license.usage[hour]
    end = min((hour for hour in life.license.usage if hour >= end), default=life.end)  # when they report again
    life.label("usage_silence", start, end)


def events_dropped(life: _Life) -> None:
    """Somebody drops some of the events, at random, for a day or two. T7: from one in a hundred."""
    day, lasting = life.somewhere(4), life.chance.randint(1, 2)
    start, end, part = START + day * DAY, START + (day + lasting) * DAY, life.chance.uniform(0.02, 0.3)
    dropped: list[datetime] = []

    def lost(at: datetime) -> bool:
        if start <= at < end and life.chance.random() < part:
            dropped.append(at)
            return True
        return False

    life.count_events(lost, late=0.05)
    if dropped:
        life.label("sequence_gaps", start, end + DAY)  # it is known when what is late could have come


def trial_again(life: _Life) -> None:
    """The same people try the product again under another name: the same machine, or another address of the company."""
    _trials(life, same_machine=life.chance.random() < 0.6, again=True)


def copied_machine(life: _Life) -> None:
    """An installation is copied to a second machine, key and all; both go on asking."""
    life.license.limit = 1
    start = life.during(life.somewhere())
    at, counter = START, 0
    while at < start:
        counter += 1
        life.note(at, "signed", str(counter))
        at += timedelta(hours=life.chance.uniform(4, 40))
    counters = [counter, counter]
    at = start
    for _ in range(life.chance.randint(6, 20)):
        which = life.chance.randrange(2)
        counters[which] += 1
        life.note(at, "signed", str(counters[which]))
        at += timedelta(minutes=life.chance.uniform(1, 30))
    life.label("cloned_installation", start, at + DAY)


# --- look-alikes ------------------------------------------------------------------------------------


def office_behind_one_address(life: _Life) -> None:
    """Fifty machines, one address."""
    life.license.limit = life.chance.choice((25, 50))
    life.work(life.machines())


def everybody_at_home(life: _Life) -> None:
    """Every machine in another network, all day."""
    life.license.limit = life.chance.choice((5, 10, 25))
    homes: dict[str, str] = {}
    life.work(life.machines(), lambda one, day, hour: homes.setdefault(one, life.network()))


def behind_a_vpn(life: _Life) -> None:
    """Machines whose address is now one exit's, now another's."""
    life.license.limit = life.chance.choice((1, 2, 3, 5))
    exits = [life.network() for _ in range(5)]
    life.work(life.machines(), lambda one, day, hour: life.chance.choice(exits))


def laptops_on_the_way(life: _Life) -> None:
    """Home, train, café, customer, hotel: several networks a day, one after the other."""
    life.license.limit = life.chance.choice((1, 2, 3))
    places: dict[tuple[str, int, int], str] = {}
    life.work(life.machines(), lambda one, day, hour: places.setdefault((one, day, hour // 2), life.network()))


def reinstalled(life: _Life) -> None:
    """A few machines are set up anew now and then, each with a new fingerprint, on a day the old one was seen."""
    life.license.limit = life.chance.choice((2, 5, 10, 25, 50))
    machines = life.machines()
    life.work(machines)
    for day in sorted(life.chance.sample(range(3, life.world.days), 4)):
        for _ in range(life.chance.randint(1, max(1, min(2, len(machines))))):
            fresh, at = life.fingerprint(), life.during(day)
            life.note(at, "attempt", fresh)
            life.use(at, fresh, life.office)


def new_office(life: _Life) -> None:
    """A new office is set up: every machine the license allows, within the hour."""
    life.license.limit = life.chance.choice((25, 50))
    start = life.during(life.somewhere(), 8, 12)
    for one in life.machines():
        at = start + timedelta(minutes=life.chance.uniform(0, 25))
        life.note(at, "attempt", one)
        life.use(at, one, life.office)


def shift_work(life: _Life) -> None:
    """Seats handed over between two or three shifts."""
    life.license.limit = life.chance.choice((2, 3, 5))
    life.work(life.machines())
    shifts = life.chance.choice((2, 2, 3))
    for day in range(life.world.days):
        for _ in range(life.license.limit):
            for shift in range(shifts):
                begins = START + day * DAY + timedelta(hours=6 + shift * 24 / shifts + life.chance.uniform(-0.3, 0.3))
                life.license.seats.append((begins, begins + timedelta(hours=24 / shifts - 0.7)))


def dead_battery(life: _Life) -> None:
    """A machine whose clock starts in 1970 when it was without power, noticed once or twice."""
    machine = life.machines(0.1)[:1]
    life.work(machine)
    for day in life.chance.sample(range(3, life.world.days), life.chance.randint(1, 2)):
        life.note(life.during(day), "clock", machine[0])


def faulty_client(life: _Life) -> None:
    """A client that signs wrongly after an update, tries a few times, and is mended."""
    life.work(life.machines())
    for day in life.chance.sample(range(3, life.world.days), 3):
        at = life.during(day)
        for _ in range(life.chance.randint(1, 4)):
            life.note(at, "signature", f"{life.office}.0/24")
            at += timedelta(seconds=life.chance.uniform(20, 200))


def forgotten_machine(life: _Life) -> None:
    """A revoked license on a machine nobody thinks of, which asks when it is switched on."""
    life.license.revoked_at = START - 5 * DAY
    machine = life.fingerprint()
    for day in range(life.world.days):
        for _ in range(life.chance.choice((0, 1, 1, 2, 3))):
            life.note(life.during(day, 6, 20), "revoked", machine)


def just_revoked(life: _Life) -> None:
    """Machines that have not heard of it yet: they ask for some hours, then are switched off."""
    life.license.revoked_at = life.during(life.somewhere(), 8, 12)
    for machine in life.machines():
        at = life.license.revoked_at
        while at < life.license.revoked_at + 20 * HOUR:
            life.note(at, "revoked", machine)
            at += timedelta(hours=life.chance.uniform(0.5, 4))


def end_of_month(life: _Life) -> None:
    """Three to five times as much in the last two days of each month, as ever."""
    times = life.chance.uniform(3, 5)
    life.consume(lambda hour: times * life.chance.uniform(0.85, 1.15) if (hour + 2 * DAY).month != hour.month else 1.0)


def growing(life: _Life) -> None:
    """A business that doubles within the season."""
    days = HISTORY_DAYS + life.world.days
    life.consume(lambda hour: 2 ** ((hour - START) / DAY / days), around_the_clock=life.chance.random() < 0.5)


def irregular(life: _Life) -> None:
    """Batch jobs: some hours three times what is usual, any day."""
    life.consume(lambda hour: 3.0 if life.chance.random() < 0.04 else 1.0, around_the_clock=True)


def holiday(life: _Life) -> None:
    """Everybody is away and the machines are off."""
    day, lasting = life.somewhere(6), life.chance.randint(3, 6)
    life.off = set(range(day, day + lasting))
    life.consume()


def reported_late(life: _Life) -> None:
    """Installations that are offline for hours and then send what they counted, in any order."""
    life.count_events(lambda at: False, late=0.25)


def trial_of_another(life: _Life) -> None:
    """Another product on the same machine; another person with the same provider of mail."""
    _trials(life, same_machine=life.chance.random() < 0.5, again=False)


def quiet_signer(life: _Life) -> None:
    """A machine that signs, twice the same request where an answer was lost: never the same number for another."""
    life.license.limit = 1
    at, counter = START, 0
    while at < life.end:
        counter += life.chance.choice((1, 1, 1, 2))
        life.note(at, "signed", str(counter))
        at += timedelta(hours=life.chance.uniform(3, 30))


def _trials(life: _Life, *, same_machine: bool, again: bool) -> None:
    life.license.trial = True
    life.license.issued_at = life.during(life.somewhere(10), 8, 10)
    life.license.mail = f"a@{life.id}.example" if again and not same_machine else f"{life.id}@gmail.com"
    machine = life.fingerprint()
    life.note(life.license.issued_at + HOUR, "activate", machine)
    second = Simulated(f"{life.id}b", life.name, life.license.benign, 3, trial=True)
    second.issued_at = life.license.issued_at + life.chance.uniform(1, 8) * DAY
    second.product = 0 if again or not same_machine else 1
    second.mail = f"b@{life.id}.example" if again and not same_machine else f"{life.id}.b@gmail.com"
    life.world.licenses.append(second)
    life.world.scenario_of[second.id] = life.name
    life.note(second.issued_at + HOUR, "activate", machine if same_machine else life.fingerprint(), second.id)
    if again:
        life.label("trial_abuse", second.issued_at, second.issued_at + DAY, second.id)


# --- not of a license -------------------------------------------------------------------------------


def keys_tried(life: _Life) -> None:
    """Keys with a right checksum, made up by a program; or anything at all, in numbers."""
    start, origin = life.during(life.somewhere()), f"{life.office}.0/24"
    life.world.scenario_of[origin] = life.name
    kind, count = life.chance.choice((("unknown_key", 40), ("mistyped_key", 300)))
    at = start
    for _ in range(round(count * life.chance.uniform(0.5, 2))):
        life.note(at, kind, f"{life.chance.getrandbits(64):016x}", origin)
        at += timedelta(seconds=life.chance.expovariate(1 / 6))
    life.label("key_enumeration", start, at, origin)


def keys_mistyped(life: _Life) -> None:
    """People who type their key, an office that still has the key that was replaced."""
    origin, replaced = f"{life.office}.0/24", f"{life.chance.getrandbits(64):016x}"
    life.world.scenario_of[origin] = life.name
    life.world.benign.add(origin)
    for day in range(life.world.days):
        at = life.during(day)
        for _ in range(life.chance.randint(0, 6)):
            life.note(at, "mistyped_key", f"{life.chance.getrandbits(64):016x}", origin)
            at += timedelta(seconds=life.chance.uniform(10, 90))
        for _ in range(life.chance.randint(0, 20)):
            life.note(life.during(day), "unknown_key", replaced, origin)


def keys_revealed(life: _Life) -> None:
    """One of us copies keys or customers before leaving."""
    start, at = life.during(life.somewhere()), START
    _desk(life)
    at = start
    reveals = life.chance.random() < 0.5
    for number in range(life.chance.randint(25, 90)):
        if reveals:
            life.world.reveals.append((at, life.id))
        life.note(at, "opened", f"{life.id}-taken-{number}")
        at += timedelta(seconds=life.chance.uniform(15, 70))
    life.label("staff_misuse", start, at)


def busy_support(life: _Life) -> None:
    """A busy desk: several keys and many customers in an hour, all day."""
    _desk(life)


def _desk(life: _Life) -> None:
    for day in range(life.world.days):
        if (START + day * DAY).weekday() >= 5:
            continue
        for hour in range(8, 17):
            for number in range(life.chance.randint(0, 14)):
                at = START + day * DAY + timedelta(hours=hour + life.chance.random())
                life.note(at, "opened", f"{life.id}-{day}-{hour}-{number}")
            for _ in range(life.chance.choice((0, 0, 1, 2, 4))):
                life.world.reveals.append((START + day * DAY + timedelta(hours=hour + life.chance.random()), life.id))


CAUSES = (
    leaked_key,
    shared_in_the_building,
    scripted_activations,
    seats_passed_around,
    clock_turned_back,
    forged_signatures,
    revoked_and_used,
    usage_stolen,
    usage_withheld,
    events_dropped,
    trial_again,
    copied_machine,
)
BENIGN = (
    office_behind_one_address,
    everybody_at_home,
    behind_a_vpn,
    laptops_on_the_way,
    reinstalled,
    new_office,
    shift_work,
    dead_battery,
    faulty_client,
    forgotten_machine,
    just_revoked,
    end_of_month,
    growing,
    irregular,
    holiday,
    reported_late,
    trial_of_another,
    quiet_signer,
)
LOOK_ALIKES = {scenario.__name__ for scenario in (*BENIGN, keys_mistyped, busy_support)}
SCENARIOS = {scenario.__name__: scenario for scenario in (*CAUSES, *BENIGN)}
OTHERS = {scenario.__name__: scenario for scenario in (keys_tried, keys_mistyped, keys_revealed, busy_support)}
