"""The staff admin of licensing: every model with a page, every change through a rule function.

`base` is the page all others are built on, `acts` what staff can do to a row, `look_up` the way in from a pasted
key. Who is signed in, the site itself and its frame are the portal's.
"""

from licensing.admin import allowances, catalog, customers, evidence, leases, licenses, rules, system, webhooks

__all__ = ["allowances", "catalog", "customers", "evidence", "leases", "licenses", "rules", "system", "webhooks"]
