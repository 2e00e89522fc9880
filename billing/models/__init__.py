"""The rows of billing, one file a topic."""

from billing.models.meters import Meter, MeterRevision
from billing.models.payments import DunningHold, DunningStep, GatewayEvent, GatewayInvoice, Payment, Reversal
from billing.models.prices import BillingAccount, Price, PriceRevision
from billing.models.rollouts import LiveComparison, Rollout, RolloutDifference, RolloutMember
from billing.models.statements import Statement, StatementLine
from billing.models.usage import Rollup, UsageChange, UsageEvent, UsageId

__all__ = [
    "BillingAccount",
    "DunningHold",
    "DunningStep",
    "GatewayEvent",
    "GatewayInvoice",
    "LiveComparison",
    "Meter",
    "MeterRevision",
    "Payment",
    "Price",
    "PriceRevision",
    "Reversal",
    "Rollout",
    "RolloutDifference",
    "RolloutMember",
    "Rollup",
    "Statement",
    "StatementLine",
    "UsageChange",
    "UsageEvent",
    "UsageId",
]
