"""How staff read what billing keeps: amounts as money, meters by their names."""

from collections.abc import Callable
from typing import Any

from django.db.models import OuterRef, QuerySet, Subquery

from billing import words
from billing.models import Meter
from licensing.admin import theme
from licensing.admin.base import figure


def in_money(field: str, label: str) -> Callable[[Any], Any]:
    """Return what shows an amount in minor units as money, in the currency of the row's statement or its own."""

    @theme.display(description=label, ordering=field)
    def tell(row: Any) -> str:
        currency = row.currency if hasattr(row, "currency") else row.statement.currency
        return figure(words.money(getattr(row, field), currency))

    tell.__name__ = field
    return tell


@theme.display(description="meter", ordering="meter")
def by_name(row: Any) -> str:
    """Return the name of the meter of a row of `with_names`, or its code where it has none."""
    return row.meter_name or row.meter or "–"


def with_names(rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return the rows, each with the name of the meter it has the code of."""
    names = Meter.objects.filter(code=OuterRef("meter")).values("name")[:1]
    return rows.annotate(meter_name=Subquery(names))
