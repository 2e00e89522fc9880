"""Acts: what staff can do to a row, each one rule function behind a page that says what will happen.

The page is a plain form: it works without scripts, changes nothing on GET, and shows a rule's refusal as an
error of the form. What an act does stands in the rule function, never here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from licensing.admin.forms import ActForm, ReasonForm


def always(row: Any, at: datetime) -> bool:
    """Offer the act whatever the row is like."""
    return True


@dataclass(frozen=True, slots=True)
class Act:
    """One thing staff can do to a row.

    `rule` is called with the row as its argument `row_as`, `by`, `at` and what the form says. `offered` only hides
    the button where the act makes no sense: the rule itself refuses. `preview` is called as the rule is, changes
    nothing and returns tables (for table.html) that a person sees before they confirm. `secret` takes a key or secret
    out of the rule's result, to be shown once on the answer's page; `goes_to` says which row's page comes after.
    """

    name: str
    label: str
    permission: str
    rule: Callable[..., Any]
    row_as: str
    says: Callable[[Any, datetime], list[str]]
    done: str
    form: type[ActForm] = ReasonForm
    offered: Callable[[Any, datetime], bool] = always
    preview: Callable[..., list[dict[str, Any]]] | None = None
    secret: Callable[[Any], str] | None = None
    goes_to: Callable[[Any, Any], Any] | None = None
    danger: bool = False
    group: str = ""
