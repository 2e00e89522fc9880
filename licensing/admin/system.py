"""Staff pages of the works: jobs and how late they are, what waits to be sent, answers kept for repeats."""

from datetime import timedelta
from typing import Any

from celery import current_app
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.http import HttpRequest
from django.utils import timezone

from licensing import deliveries, sweeps
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffModelAdmin, instant
from licensing.admin.evidence import license_link
from licensing.admin.forms import OptionalReasonForm, said
from licensing.models import IdempotencyRecord, JobState, OutboxMessage, Reminder
from licensing.sweeps import Job, Standing


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


def _known(state: JobState) -> Job | None:
    return next((job for job in sweeps.every() if job.name == state.name), None)


def _run_now(**asked: Any) -> Any:
    return sweeps.run_by_hand(**asked, queue=lambda name: current_app.send_task("licensing.run_job", [name]))


@admin.register(JobState)
class JobStateAdmin(StaffModelAdmin):
    """The periodic jobs: how each stands, and a button to run it now."""

    list_display = ("name", "standing", "lag", "last_finished_at", "next_run", "last_count", "failures")
    search_fields = ("name",)
    fieldsets = (
        (None, {"fields": ("name", "standing", "lag", "next_run", "watermark_at")}),
        ("Last run", {"fields": ("last_started_at", "last_finished_at", "last_count", "failures", "last_error")}),
        ("Run key", {"fields": ("finished_key", "run_key", "claimed_until")}),
    )
    acts = (
        Act(
            name="run",
            label="Run now…",
            permission="licensing.change_jobstate",
            rule=_run_now,
            row_as="job",
            says=lambda job, at: [
                "It does what is due, as its own runs do. Running it twice changes nothing.",
                "A worker does it if one is at work; otherwise it is done here, which may take a while.",
            ],
            done="The job was run, or is being run by a worker.",
            form=OptionalReasonForm,
            offered=lambda job, at: _known(job) is not None,
        ),
    )

    def _standing(self, state: JobState) -> Standing | None:
        job = _known(state)
        if job is None:
            return None
        kept = vars(state)  # two columns ask; the answer is three queries
        if "standing" not in kept:
            kept["standing"] = sweeps.standing(job, at=timezone.now())
        return kept["standing"]

    @theme.display(description="next run")
    def next_run(self, state: JobState) -> str:
        standing = self._standing(state)
        return instant(standing.next_at) if standing else "–"

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
    """What was and is to be sent; a dead letter, or what arrived and was lost there, can be sent again."""

    list_display = ("kind", "template", "standing", "license_shown", "attempts", "due_at", "delivered_at")
    list_filter = (DeliveryFilter,)
    search_fields = ("kind", "target")
    search_help_text = "Kind, target, or license id"
    uuid_fields = ("license_id",)
    fieldsets = (
        (None, {"fields": ("kind", "payload", "license_shown", "id")}),
        (
            "Delivery",
            {
                "fields": (
                    *("target", "due_at", "tried_at", "attempts", "delivered_at", "given_up_at", "last_error"),
                    "created_at",
                )
            },
        ),
    )
    acts = (
        Act(
            name="replay",
            label="Send again…",
            permission="licensing.change_outboxmessage",
            rule=deliveries.replay,
            row_as="message",
            says=lambda message, at: [
                "The message is sent again under its id: whoever has it already can tell.",
                "Later messages of the same license to the same target wait until it has arrived or is given up.",
            ],
            done="The message is on its way.",
            offered=lambda message, at: message.delivered_at is not None or message.given_up_at is not None,
        ),
    )

    @theme.display(description="what")
    def template(self, message: OutboxMessage) -> str:
        return str(message.payload.get("template") or message.payload.get("type") or "–")

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


@admin.register(Reminder)
class ReminderAdmin(StaffModelAdmin):
    """That customers were told of licenses that end soon, read-only."""

    list_display = ("license_shown", "days", "expires_at", "created_at")
    list_filter = ("days",)
    search_fields = ("license__customer__code",)
    search_help_text = "Customer code, or license id"
    uuid_fields = ("license_id",)

    @theme.display(description="license")
    def license_shown(self, reminder: Reminder) -> str:
        return license_link(reminder.license_id)
