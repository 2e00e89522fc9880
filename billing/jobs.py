"""Billing's periodic jobs, reconcilers like those of `licensing.sweeps`.

Run twice, at the same time or killed half-way, they leave what one run leaves.
"""

from datetime import datetime, timedelta

import structlog
from django.conf import settings

from billing import dunning, partitions, payments, rollups, statements
from billing.models import UsageChange
from billing.windows import ACCEPTED_BACK
from licensing import allowances, audit
from licensing.errors import Refused
from licensing.models import Customer
from licensing.sweeps import Job, since_due

log = structlog.get_logger(__name__)


def _refresh_statements(at: datetime) -> tuple[int, int]:
    done = failed = 0
    for customer_id in statements.billed_customers():
        try:
            done += statements.open_months(customer=Customer.objects.get(pk=customer_id), at=at)
        except Exception as error:  # one broken customer must not stop the others
            failed += 1
            log.exception("statement_refresh_failed", customer_id=str(customer_id), error=type(error).__name__)
    return done, failed


def _close_statements(at: datetime) -> tuple[int, int]:
    by = audit.system("statement-close")
    done = failed = 0
    for statement in statements.due(at=at):
        try:
            statements.close(statement=statement, by=by, at=at)
            done += 1
        except Refused:
            continue  # another run closed it, or something holds it open since
        except Exception as error:
            failed += 1
            log.exception("statement_close_failed", statement_id=str(statement.pk), error=type(error).__name__)
    return done, failed


def _closing_lag(at: datetime) -> timedelta:
    waiting = statements.due(at=at)
    return at - waiting[0].ends_at - timedelta(days=settings.STATEMENT_GRACE_DAYS) if waiting else timedelta()


DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
STATEMENT_REFRESH = Job("statement-refresh", HOUR, _refresh_statements, since_due("statement-refresh", HOUR))
STATEMENT_CLOSE = Job("statement-close", timedelta(hours=1), _close_statements, _closing_lag)


def _roll_up(at: datetime) -> tuple[int, int]:
    return rollups.roll_up(at=at).hours, 0


def _reconcile(at: datetime) -> tuple[int, int]:
    return len(rollups.reconcile(at=at)), 0


def _partitions(at: datetime) -> tuple[int, int]:
    return len(partitions.ahead(at=at)), 0


def _forget_ids(at: datetime) -> tuple[int, int]:
    done = 0
    while gone := partitions.forget_ids(at=at):  # in batches, so that no lock is held for long
        done += gone
    return done, 0


def _follow_up(at: datetime) -> tuple[int, int]:
    return allowances.catch_up(at=at, since=at - ACCEPTED_BACK)


def _rollup_lag(at: datetime) -> timedelta:
    """Return how long usage has waited at most: what is not rolled up came in after the last run."""
    return since_due("usage-rollup", timedelta())(at) if UsageChange.objects.exists() else timedelta()


def _gateway_lag(at: datetime) -> timedelta:
    return since_due("gateway-reconciliation", HOUR)(at) if settings.STRIPE_SECRET_KEY else timedelta()


# So often that unusual usage is told of within a minute: roll-up, rules and relay come one after the other.
ROLL_UP = Job("usage-rollup", timedelta(seconds=30), _roll_up, _rollup_lag)
RECONCILE = Job(
    "usage-reconcile", DAY, _reconcile, since_due("usage-reconcile", DAY), offset=timedelta(hours=2, minutes=27)
)
PARTITIONS = Job(
    "usage-partitions", DAY, _partitions, since_due("usage-partitions", DAY), offset=timedelta(hours=1, minutes=7)
)
USAGE_IDS = Job("usage-ids", DAY, _forget_ids, since_due("usage-ids", DAY), offset=timedelta(hours=3, minutes=47))
FOLLOW_UP = Job("usage-follow-up", MINUTE, _follow_up, since_due("usage-follow-up", MINUTE))
GATEWAY_INVOICES = Job(
    "gateway-invoices",
    timedelta(minutes=1),
    lambda at: payments.send_due(at=at),
    lambda at: payments.lag(at=at),
)
GATEWAY_RECONCILIATION = Job("gateway-reconciliation", HOUR, lambda at: payments.reconcile(at=at), _gateway_lag)
DUNNING = Job("dunning", timedelta(minutes=15), lambda at: dunning.run(at=at), lambda at: dunning.lag(at=at))
JOBS = (
    ROLL_UP,
    RECONCILE,
    PARTITIONS,
    USAGE_IDS,
    FOLLOW_UP,
    STATEMENT_REFRESH,
    STATEMENT_CLOSE,
    GATEWAY_INVOICES,
    GATEWAY_RECONCILIATION,
    DUNNING,
)
