"""Every state and kind of billing, one spelling in database, API and docs. Reads no database, no clock, no settings."""

from django.db.models import TextChoices


class Aggregation(TextChoices):
    """What a meter makes of its events within a window."""

    SUM = "sum"
    COUNT = "count"
    UNIQUE = "unique", "number of different values"
    MAX = "max", "largest"
    LATEST = "latest", "last value"
    TIME_WEIGHTED_SUM = "time_weighted_sum", "value times time (seconds)"


# Only these can be counted as they come, so only these can have a hard allowance.
COUNTED_LIVE = frozenset({Aggregation.SUM, Aggregation.COUNT})


class EventKind(TextChoices):
    USAGE = "usage"
    CORRECTION = "correction"


class Window(TextChoices):
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class StatementState(TextChoices):
    DRAFT = "draft"
    FINAL = "final"
    PAID = "paid"
    VOID = "void"


STATEMENT_TRANSITIONS = {
    StatementState.DRAFT: {StatementState.FINAL},
    StatementState.FINAL: {StatementState.PAID, StatementState.VOID},
    StatementState.PAID: set(),
    StatementState.VOID: set(),
}


class LineKind(TextChoices):
    FLAT = "flat", "flat fee"
    SEATS = "seats"
    USAGE = "usage"
    MINIMUM = "minimum", "up to the minimum commitment"
    DISCOUNT = "discount"
    CREDIT = "credit", "unused time"
    ADJUSTMENT = "adjustment"


class RolloutStage(TextChoices):
    """How far a rollout has come. Every stage before `final` can be rolled back."""

    PREPARED = "prepared"
    REHEARSED = "rehearsed"
    SHADOW = "shadow", "rated and decided both ways"
    CANARY = "canary", "some switched"
    ALL = "all", "all switched"
    VERIFIED = "verified"
    FINAL = "final"
    ROLLING_BACK = "rolling_back", "being rolled back"
    ROLLED_BACK = "rolled_back", "rolled back"


ROLLOUT_TRANSITIONS = {
    RolloutStage.PREPARED: {RolloutStage.REHEARSED, RolloutStage.ROLLING_BACK},
    RolloutStage.REHEARSED: {RolloutStage.SHADOW, RolloutStage.ROLLING_BACK},
    RolloutStage.SHADOW: {RolloutStage.CANARY, RolloutStage.ALL, RolloutStage.ROLLING_BACK},
    RolloutStage.CANARY: {RolloutStage.CANARY, RolloutStage.ALL, RolloutStage.ROLLING_BACK},
    RolloutStage.ALL: {RolloutStage.VERIFIED, RolloutStage.ROLLING_BACK},
    RolloutStage.VERIFIED: {RolloutStage.FINAL, RolloutStage.ROLLING_BACK},
    RolloutStage.FINAL: set(),
    RolloutStage.ROLLING_BACK: {RolloutStage.ROLLED_BACK},
    RolloutStage.ROLLED_BACK: set(),
}


class MemberState(TextChoices):
    PENDING = "pending"
    SWITCHED = "switched"
    SKIPPED = "skipped", "left out"
    REVERTED = "reverted"
    FINAL = "final"


class DifferenceKind(TextChoices):
    MONEY = "money"
    DECISION = "decision"
    LIMIT = "limit"
    LIVE = "live", "live request"


class InvoiceState(TextChoices):
    """How a statement stands at the payment gateway. From the last three there is no way on."""

    WAITING = "waiting", "not sent yet"
    OPEN = "open"
    UNCOLLECTIBLE = "uncollectible"
    PAID = "paid"
    VOID = "void"
    NOT_NEEDED = "not_needed", "settled before it was sent"


INVOICE_ENDS = frozenset({InvoiceState.PAID, InvoiceState.VOID, InvoiceState.NOT_NEEDED})


class GatewayOutcome(TextChoices):
    APPLIED = "applied"
    IGNORED = "ignored", "nothing of ours"
    UNKNOWN = "unknown", "not known at the gateway"


class PaymentSource(TextChoices):
    GATEWAY = "gateway", "payment gateway"
    BY_HAND = "by_hand", "recorded by staff"
    CREDIT = "credit", "credit of an earlier statement"


class ReversalKind(TextChoices):
    """How the gateway took money back, or asks for less."""

    REFUND = "refund"
    CREDIT_NOTE = "credit_note", "credit note"
    DISPUTE = "dispute"


class DunningAct(TextChoices):
    REMINDER = "reminder"
    HOLD = "hold"
