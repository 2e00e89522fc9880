"""GET /usage: what a license used, by hour, day or month."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from billing import rollups
from billing.models import Meter
from billing.states import Window
from licensing.api.base import ApiViewSet
from licensing.api.views import _called_license
from licensing.errors import Invalid
from licensing.gate import UnknownField, instant
from licensing.models import License

LONGEST = {Window.HOUR: timedelta(days=31), Window.DAY: timedelta(days=366), Window.MONTH: timedelta(days=5 * 366)}
LONGEST_GROUPED = timedelta(days=31)  # groups are totalled from the events themselves
MOST_DIMENSIONS = 3
NAMES = ("license", "meter", "from", "to", "window", "group_by")


class ShownUsage(serializers.Serializer[Any]):
    """What one meter counted in one window, or in the part of it that was asked for."""

    start = serializers.DateTimeField()
    end = serializers.DateTimeField()
    meter = serializers.CharField()
    quantity = serializers.CharField(help_text="A decimal. A time-weighted sum is in seconds.")
    group = serializers.DictField(child=serializers.CharField(), help_text="The dimensions asked for, by name")


class ShownUsageReport(serializers.Serializer[Any]):
    """Usage in order of time; windows without any are left out."""

    results = ShownUsage(many=True)


def _asked(name: str, kind: Any, description: str, **more: Any) -> OpenApiParameter:
    return OpenApiParameter(name, kind, description=description, **more)


documented = extend_schema(
    operation_id="usage_report",
    parameters=[
        _asked("license", OpenApiTypes.UUID, "For a server: whose usage"),
        _asked("meter", OpenApiTypes.STR, "The code of a meter; all without it"),
        _asked("from", OpenApiTypes.DATETIME, "The start, included", required=True),
        _asked("to", OpenApiTypes.DATETIME, "The end, not included; now, without it"),
        _asked("window", OpenApiTypes.STR, "In UTC; a day, without it", enum=list(Window.values)),
        _asked("group_by", OpenApiTypes.STR, "Dimensions of the meter, with commas between"),
    ],
    responses=ShownUsageReport,
)


class UsageViews(ApiViewSet):
    """Usage: what was counted."""

    serializer_class = ShownUsageReport
    queryset = License.objects.all()
    read_scope, write_scope, tenant = "usage:read", "usage", "customer_id"

    @documented
    def report(self, request: Request) -> Response:
        """Return what a license used, by hour, day or month."""
        asked = request.query_params
        for name in asked:
            if name not in NAMES:
                raise UnknownField(f"There is no parameter '{name}'; there are {', '.join(NAMES)}.", pointer=f"/{name}")
        license = _called_license(self, asked.get("license"))
        window = asked.get("window", Window.DAY)
        if window not in Window.values:
            raise Invalid(f"A window is one of {', '.join(Window.values)}.", pointer="/window")
        starts_at, ends_at = _instant(asked.get("from"), "from"), _instant(asked.get("to", self.at), "to")
        meter, by = asked.get("meter"), _dimensions(asked.get("meter"), asked.get("group_by", ""))
        longest = min(LONGEST[Window(window)], LONGEST_GROUPED) if by else LONGEST[Window(window)]
        if not starts_at < ends_at:
            raise Invalid("'from' is before 'to'.", pointer="/from")
        if ends_at - starts_at > longest:
            what = "in groups" if by else f"by {window}"
            raise Invalid(f"At most {longest.days} days at once {what}: ask in parts.", pointer="/to")
        found = rollups.series(
            license_id=license.pk, starts_at=starts_at, ends_at=ends_at, window=window, meter=meter, by=by
        )
        return Response(
            {
                "results": [
                    {
                        "start": instant(each.starts_at),
                        "end": instant(each.ends_at),
                        "meter": each.total.meter,
                        "quantity": _plain(each.total.quantity),
                        "group": each.total.group,
                    }
                    for each in found
                ]
            }
        )


def _instant(value: Any, name: str) -> datetime:
    if isinstance(value, datetime):
        return value
    if not value:
        raise Invalid(f"Say {name} when, as 2026-01-31T00:00:00Z.", pointer=f"/{name}")
    try:
        # In a query an unescaped + means a space.
        found = datetime.fromisoformat(str(value).replace(" ", "+"))
        if found.tzinfo is None:
            raise ValueError
        found = found.astimezone(UTC)
        return found + timedelta(days=62) - timedelta(days=62)  # a window of it ends before the year 10000
    except (ValueError, OverflowError):
        raise Invalid("An instant is RFC 3339 with its offset, as 2026-01-31T00:00:00Z.", pointer=f"/{name}") from None


def _dimensions(meter: str | None, group_by: str) -> tuple[str, ...]:
    """Return the dimensions to group by: those of the meter's revisions. Raises `Invalid`."""
    if meter is not None and not Meter.objects.filter(code=meter).exists():
        raise Invalid(f"There is no meter '{meter[:64]}'.", pointer="/meter")
    by = tuple(dict.fromkeys(name.strip() for name in group_by.split(",") if name.strip()))
    if not by:
        return ()
    if meter is None:
        raise Invalid("Say whose dimensions: group_by goes with meter.", pointer="/meter")
    known = {
        name
        for dimensions in Meter.objects.filter(code=meter).values_list("revisions__dimensions", flat=True)
        for name in dimensions or ()
    }
    for name in by:
        if name not in known:
            raise Invalid(f"'{meter}' has no dimension '{name[:64]}'.", pointer="/group_by")
    if len(by) > MOST_DIMENSIONS:
        raise Invalid(f"Group by at most {MOST_DIMENSIONS} dimensions.", pointer="/group_by")
    return by


def _plain(quantity: Decimal) -> str:
    """Return a quantity as a decimal without zeros that say nothing."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


report = UsageViews.as_view({"get": "report"})
