"""Staff pages of the works: jobs and how late they are, what waits to be sent, answers kept for repeats."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.http import HttpRequest
from django.utils import timezone

from licensing import sweeps
from licensing.admin import theme
from licensing.admin.base import StaffModelAdmin
from licensing.admin.evidence import license_link
from licensing.admin.forms import said
from licensing.models import IdempotencyRecord, JobState, OutboxMessage
from licensing.sweeps import Standing


def lag_said(standing: Standing) -> str:
    """Return how late a job is, to the second below a minute."""
    if standing.lag < timedelta(minutes=1):
        return f"{int(standing.lag.total_seconds())} s"
    return said(standing.lag)


def standing_said(standing: Standing) -> str:
    """Return whether a job runs as often as it should."""
    if standing.overdue:
        return "overdue"
    return "on time" if standing.last_finished_at else "not run yet"


@admin.register(JobState)
class JobStateAdmin(StaffModelAdmin):
    """The periodic jobs, read-only: a late one is mended by running its worker, not here."""

    list_display = ("name", "standing", "lag", "last_finished_at", "last_count", "failures")
    search_fields = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "standing", "lag", "watermark_at", "last_started_at", "last_finished_at")}),
        ("Last run", {"fields": ("last_count", "failures", "last_error")}),
    )

    def _standing(self, state: JobState) -> Standing | None:
        job = next((job for job in sweeps.JOBS if job.name == state.name), None)
        if job is None:
            return None
        kept = vars(state)  # two columns ask; the answer is three queries
        if "standing" not in kept:
            kept["standing"] = sweeps.standing(job, at=timezone.now())
        return kept["standing"]

    @theme.display(description="lag")
    def lag(self, state: JobState) -> str:
        standing = self._standing(state)
        return lag_said(standing) if standing else "–"

    @theme.display(
        description="standing",
        label={"on time": "success", "overdue": "danger", "not run yet": "info", "no longer run": "default"},
    )
    def standing(self, state: JobState) -> str:
        standing = self._standing(state)
        return standing_said(standing) if standing else "no longer run"

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        return queryset.filter(name__icontains=search_term.strip()), False


class DeliveryFilter(SimpleListFilter):
    """How far a message got."""

    title = "delivery"
    parameter_name = "delivery"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("waiting", "waiting"), ("delivered", "delivered"), ("given_up", "given up")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        match self.value():
            case "waiting":
                return queryset.filter(delivered_at=None, given_up_at=None)
            case "delivered":
                return queryset.filter(delivered_at__isnull=False)
            case "given_up":
                return queryset.filter(given_up_at__isnull=False)
        return queryset


@admin.register(OutboxMessage)
class OutboxMessageAdmin(StaffModelAdmin):
    """What was and is to be sent, read-only."""

    list_display = ("kind", "template", "standing", "license_shown", "attempts", "due_at", "delivered_at")
    list_filter = (DeliveryFilter,)
    search_fields = ("kind",)
    search_help_text = "Kind, or license id"
    uuid_fields = ("license_id",)
    fieldsets = (
        (None, {"fields": ("kind", "payload", "license_shown", "id")}),
        ("Delivery", {"fields": ("due_at", "attempts", "delivered_at", "given_up_at", "last_error", "created_at")}),
    )

    @theme.display(description="template")
    def template(self, message: OutboxMessage) -> str:
        return str(message.payload.get("template", "–"))

    @theme.display(
        description="delivery",
        label={"waiting": "info", "retrying": "warning", "delivered": "success", "given up": "danger"},
    )
    def standing(self, message: OutboxMessage) -> str:
        if message.delivered_at is not None:
            return "delivered"
        if message.given_up_at is not None:
            return "given up"
        return "retrying" if message.attempts else "waiting"

    @theme.display(description="license")
    def license_shown(self, message: OutboxMessage) -> str:
        return license_link(message.license_id)


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(StaffModelAdmin):
    """That an answer is kept for a repeated request, for 24 hours; never the answer."""

    list_display = ("id", "principal", "created_at", "expires_at")
    search_fields = ("principal",)
    search_help_text = "Principal"
