"""The staff admin of billing: what is counted, what it costs, who is billed, what is owed and paid,
and how licenses change from one way of charging to another.

Its pages are built like licensing's (`licensing.admin.base`). Usage has a page of its own (`usage`): its tables are
keyed by license and have no page a row.
"""

from billing.admin import accounts, catalog, changes, payments, rollouts, statements

__all__ = ["accounts", "catalog", "changes", "payments", "rollouts", "statements"]
