"""Staff pages of licenses and what hangs on them: keys, holds, terms, seats, machines."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.admin import SimpleListFilter
from django.db.models import Prefetch, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from licensing import activations, audit, keys, lifecycle, proofs, seats, validation
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, StaffModelAdmin, as_uuid, instant, link_to, list_of, quantity
from licensing.admin.forms import ActForm, CodeField, NoInputs, RowForm, SpanField, why
from licensing.audit import Actor
from licensing.models import (
    Activation,
    AuditEntry,
    Customer,
    DecisionRecord,
    Hold,
    License,
    LicenseKey,
    PlanRevision,
    Seat,
    Term,
)
from licensing.states import HoldReason, LicenseStatus, RevisionState, SeatKind, SeatState

SHOWN = 20
COLOURS = {
    "draft": "info",
    "active": "success",
    "in grace": "warning",
    "expired": "danger",
    "held": "danger",
    "revoked": "default",
}


class RenewForm(ActForm):
    """For how long, and why."""

    duration = SpanField(required=False, help_text="Empty: the plan's own duration.")
    reason = why()


class HoldForm(ActForm):
    """Which reason stops the license; the note is for us."""

    reason = forms.ChoiceField(choices=HoldReason.choices, widget=theme.Select)
    note = why(help_text="What led to it. Kept with the hold and in the audit record; not mailed to anybody.")


class LiftForm(ActForm):
    """Which of the open holds is lifted."""

    reason = forms.ChoiceField(label="Hold", widget=theme.Select)
    note = why(label="Reason")

    def __init__(self, *args: Any, row: License, at: datetime, **options: Any) -> None:
        super().__init__(*args, row=row, at=at, **options)
        standing = {hold.reason for hold in row.holds.all() if hold.lifted_at is None}
        field = self.fields["reason"]
        assert isinstance(field, forms.ChoiceField)
        # Once lifted, the page still says so instead of offering nothing at all.
        field.choices = [pair for pair in HoldReason.choices if pair[0] in standing] or HoldReason.choices


class TransferForm(ActForm):
    """Whose license it becomes."""

    to = CodeField(Customer.objects.all(), label="New customer's code")
    reason = why()


class LimitsForm(ActForm):
    """Limits of the license's own, filled in with those it has."""

    seat_limit = forms.IntegerField(required=False, min_value=0, widget=theme.NumberInput, help_text="Empty: no limit.")
    activation_limit = forms.IntegerField(
        required=False, min_value=0, widget=theme.NumberInput, label="Machine limit", help_text="Empty: no limit."
    )
    reason = why()

    def __init__(self, *args: Any, row: License, at: datetime, **options: Any) -> None:
        options.setdefault("initial", {"seat_limit": row.seat_limit, "activation_limit": row.activation_limit})
        super().__init__(*args, row=row, at=at, **options)


class HolderForm(ActForm):
    """Who gets a seat."""

    holder = forms.EmailField(label="Holder's email address", widget=theme.EmailInput(attrs={"autocomplete": "off"}))


class HeirForm(ActForm):
    """Who gets this seat, and why."""

    to = forms.EmailField(label="New holder's email address", widget=theme.EmailInput(attrs={"autocomplete": "off"}))
    reason = why()


class IssueForm(RowForm):
    """A new license: who gets it, under which terms, and what is its own."""

    class Meta:
        model = License
        fields = ("customer", "plan_revision", "starts_at", "expires_at", "seat_limit", "activation_limit")
        help_texts = {
            "plan_revision": "Revisions that are offered now.",
            "expires_at": "Empty: as the plan says.",
            "seat_limit": "Empty: as the plan says.",
            "activation_limit": "Empty: as the plan says.",
        }

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["starts_at"].required = False
        self.fields["starts_at"].help_text = "Empty: now."
        field = self.fields["plan_revision"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = PlanRevision.objects.filter(state=RevisionState.PUBLISHED).select_related("plan__product")
        setattr(field, "label_from_instance", _offered)  # noqa: B010  as Django documents it, which mypy cannot


def _offered(revision: PlanRevision) -> str:
    return f"{revision.plan.product}: {revision}"


class StatusFilter(SimpleListFilter):
    """The status right now, as `lifecycle.status_of` says it of one license."""

    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return list(LicenseStatus.choices)

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if self.value() not in LicenseStatus.values:
            return queryset
        return queryset.with_status(self.value(), timezone.now())


def _standing(license: License, at: datetime) -> bool:
    return license.issued_at is not None and license.revoked_at is None


def _seated(license: License, at: datetime) -> bool:
    return _standing(license, at) and license.plan_revision.seat_kind == SeatKind.NAMED


def _says_issue(license: License, at: datetime) -> list[str]:
    until = f"until {license.expires_at:%Y-%m-%d %H:%M} UTC" if license.expires_at else "without an end"
    return [
        f"{license.customer} may use {license.product} under {license.plan_revision}, {until}.",
        "The license key is made and shown to you once, on the next page.",
    ]


def _says_hold(license: License, at: datetime) -> list[str]:
    return [
        "Programs are refused from their next validation on, until this hold is lifted.",
        f"{license.customer}'s owners and license managers are told by mail that it is held, and for which reason.",
    ]


def _says_revoke(license: License, at: datetime) -> list[str]:
    return [
        "The license ends for good. There is no way back: a new license would have to be issued.",
        f"{license.seats_used} seats and {license.activations_used} machines stop working with it.",
        "To stop it for a while, hold it instead.",
    ]


def _says_transfer(license: License, at: datetime) -> list[str]:
    return [
        f"{license.customer} loses the license, the new customer gets it.",
        f"All {license.seats_used} seats are released and all {license.activations_used} machines let go.",
        "Its key is replaced: nothing of the former customer's works any more. Reveal the new key afterwards.",
    ]


def _acts() -> tuple[Act, ...]:
    may_issue, may_hold = "licensing.issue_license", "licensing.hold_license"
    may_seat, may_reveal, may_change = "licensing.manage_seats", "licensing.reveal_key", "licensing.change_license"
    return (
        Act(
            name="issue",
            label="Issue…",
            permission=may_issue,
            rule=lifecycle.issue_prepared,
            row_as="license",
            says=_says_issue,
            done="The license is issued.",
            offered=lambda license, at: license.issued_at is None,
            secret=lambda result: result[1],
        ),
        Act(
            name="renew",
            label="Renew…",
            permission=may_issue,
            rule=lifecycle.renew,
            row_as="license",
            form=RenewForm,
            says=lambda license, at: [
                "The expiry moves on by the plan's duration, or the one you give, "
                f"{license.plan_revision.get_renewal_basis_display()}.",
                "A maintenance window moves on by its own length.",
            ],
            done="The license is renewed.",
            offered=lambda license, at: (
                _standing(license, at) and bool(license.expires_at or license.maintenance_until)
            ),
        ),
        Act(
            name="hold",
            label="Hold…",
            permission=may_hold,
            rule=lifecycle.hold,
            row_as="license",
            form=HoldForm,
            says=_says_hold,
            done="The license is held.",
            offered=_standing,
        ),
        Act(
            name="lift",
            label="Lift a hold…",
            permission=may_hold,
            rule=lifecycle.lift,
            row_as="license",
            form=LiftForm,
            says=lambda license, at: [
                "This hold is lifted. When no other is open, programs are let in from their next validation on."
            ],
            done="The hold is lifted.",
            offered=lambda license, at: any(hold.lifted_at is None for hold in license.holds.all()),
        ),
        Act(
            name="assign-seat",
            label="Assign a seat…",
            permission=may_seat,
            rule=seats.assign,
            row_as="license",
            form=HolderForm,
            says=lambda license, at: ["The holder may use the license at once.", _room(license)],
            done="The seat is assigned.",
            offered=_seated,
        ),
        Act(
            name="reserve-seat",
            label="Reserve a seat…",
            permission=may_seat,
            rule=seats.reserve,
            row_as="license",
            form=HolderForm,
            says=lambda license, at: ["A seat is kept for the holder until it is assigned.", _room(license)],
            done="The seat is reserved.",
            offered=_seated,
            group="more",
        ),
        Act(
            name="reveal-key",
            label="Reveal key…",
            permission=may_reveal,
            rule=keys.reveal,
            row_as="license",
            says=lambda license, at: [
                "The whole license key is shown to you once, on the next page.",
                "That you saw it, when and why is kept in the audit record, which the customer can ask for.",
            ],
            done="The license key",
            offered=lambda license, at: license.issued_at is not None,
            secret=lambda result: str(result),
        ),
        Act(
            name="rotate-key",
            label="Replace key…",
            permission=may_reveal,
            rule=keys.rotate,
            row_as="license",
            says=lambda license, at: [
                "The present key names nothing from now on: every program that has it is refused.",
                "A new key is made and shown to you once, on the next page.",
            ],
            done="The key is replaced. The new license key",
            offered=_standing,
            secret=lambda result: str(result),
            group="more",
            danger=True,
        ),
        Act(
            name="change-limits",
            label="Change limits…",
            permission=may_change,
            rule=lifecycle.change_limits,
            row_as="license",
            form=LimitsForm,
            says=lambda license, at: [
                "This license gets limits of its own, whatever its plan says.",
                "Where more is in use nobody is thrown out, but nothing more is granted until use is below the limit.",
            ],
            done="The limits are changed.",
            offered=_standing,
            group="more",
        ),
        Act(
            name="transfer",
            label="Transfer to another customer…",
            permission=may_change,
            rule=lifecycle.transfer,
            row_as="license",
            form=TransferForm,
            says=_says_transfer,
            done="The license is transferred.",
            offered=_standing,
            group="more",
            danger=True,
        ),
        Act(
            name="revoke",
            label="Revoke…",
            permission="licensing.revoke_license",
            rule=lifecycle.revoke,
            row_as="license",
            says=_says_revoke,
            done="The license is revoked.",
            offered=_standing,
            group="more",
            danger=True,
        ),
        Act(
            name="accept-terms",
            label="Accept terms…",
            permission=may_issue,
            rule=lifecycle.accept_terms,
            row_as="license",
            says=lambda license, at: [
                "Limits, dates or state of this license were written past the rules, straight into the database. "
                "Until that is cleared up no program is answered for it.",
                "Accepting takes them as they are shown here. Find out first who wrote them.",
            ],
            done="The terms are accepted.",
            offered=lambda license, at: not proofs.stand(license),
            group="more",
            danger=True,
        ),
    )


def _room(license: License) -> str:
    if license.seat_limit is None:
        return f"{license.seats_used} seats are taken; there is no limit."
    return f"{license.seats_used} of {license.seat_limit} seats are taken."


def tail_of(license: License) -> str:
    """Return the last characters of the license's live key, from what was prefetched."""
    live = [key for key in license.keys.all() if key.retired_at is None]
    return f"…{live[0].last5}" if live else "no key"


def used(count: int, limit: int | None) -> str:
    """Return how much of a limit is in use."""
    return f"{count} / {'∞' if limit is None else limit}"


@admin.register(License)
class LicenseAdmin(StaffHistoryAdmin):
    """Licenses: found, judged, and changed only by acts."""

    shows_personal = ("page",)  # who holds its seats
    change_form_template = "admin/licensing/license/change_form.html"
    list_before_template = "admin/staff/before_licenses.html"
    list_display = ("key_tail", "customer", "plan_shown", "status_shown", "seats_shown", "machines_shown", "expires_at")
    list_filter = (StatusFilter, "scheme", "product")
    search_fields = ("pk",)
    search_help_text = "Customer, license id, key's last 5, or a holder's email"
    autocomplete_fields = ("customer",)
    add_form = IssueForm
    adds = ("customer", "plan_revision", "starts_at", "expires_at", "seat_limit", "activation_limit")
    add_permission = "licensing.issue_license"
    uuid_fields = ("customer_id",)
    fieldsets = (
        (
            "Every field",
            {
                "classes": ("collapse",),
                "fields": (
                    "id",
                    "customer",
                    "product",
                    "plan_revision",
                    "scheme",
                    "issued_at",
                    "starts_at",
                    "first_activated_at",
                    "expires_at",
                    "grace_until",
                    "maintenance_until",
                    "revoked_at",
                    "seat_limit",
                    "seats_ceiling",
                    "seats_used",
                    "activation_limit",
                    "activations_ceiling",
                    "activations_used",
                    "revision",
                    "created_at",
                    "updated_at",
                    "swept_status",
                    "due_at",
                ),
            },
        ),
    )
    acts = _acts()

    def get_queryset(self, request: HttpRequest) -> QuerySet[License]:
        return (
            super()
            .get_queryset(request)
            .select_related("customer", "product", "plan_revision__plan")
            .prefetch_related("holds", Prefetch("keys", LicenseKey.objects.defer("digest", "sealed")))
        )

    @theme.display(description="key")
    def key_tail(self, license: License) -> str:
        return tail_of(license)

    @theme.display(description="plan", ordering="plan_revision")
    def plan_shown(self, license: License) -> str:
        return f"{license.product}: {license.plan_revision}"

    @theme.display(description="status", label=COLOURS)
    def status_shown(self, license: License) -> str:
        return str(lifecycle.status_of(license, timezone.now()).label).lower()

    @theme.display(description="seats")
    def seats_shown(self, license: License) -> str:
        return used(license.seats_used, license.seat_limit)

    @theme.display(description="machines")
    def machines_shown(self, license: License) -> str:
        return used(license.activations_used, license.activation_limit)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term = search_term.strip()
        if as_uuid(term) or not term:
            return super().get_search_results(request, queryset, search_term)
        if "@" in term:
            held = Seat.objects.filter(holder=term.lower(), released_at=None)
            return queryset.filter(pk__in=held.values("license")), False
        named = Customer.objects.filter(Q(code__istartswith=term) | Q(name__icontains=term))
        condition = Q(customer__in=named.values("pk"))
        if len(term) == 5:
            condition |= Q(pk__in=LicenseKey.objects.filter(last5=term.upper()).values("license"))
        return queryset.filter(condition), False

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        given = {name: value for name, value in form.cleaned_data.items() if value is not None}
        return lifecycle.prepare(**given, by=self.by(request), at=at)

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: str | None = None) -> HttpResponse:
        return HttpResponseRedirect(self.act_url(obj, "issue"))

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("License", link_to(row, str(row.pk))),
            ("Key", tail_of(row)),
            ("Customer", str(row.customer)),
            ("Plan", f"{row.product}: {row.plan_revision}"),
            ("Status", lifecycle.status_of(row, at).label),
            ("Expires", f"{row.expires_at:%Y-%m-%d %H:%M} UTC" if row.expires_at else "never"),
            ("Seats", used(row.seats_used, row.seat_limit)),
            ("Machines", used(row.activations_used, row.activation_limit)),
        ]

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        try:
            verdict = validation.verdict_for_staff(license_id=row.pk, at=at).verdict
        except proofs.TermsAltered:
            verdict = None
        status = lifecycle.status_of(row, at)
        label = str(status.label).lower()
        return {
            "status": label,
            "status_colour": COLOURS[label],
            "verdict": verdict,
            "verdict_at": at,
            "facts": [
                ("Key", tail_of(row)),
                ("Customer", link_to(row.customer)),
                ("Product", link_to(row.product)),
                ("Plan revision", link_to(row.plan_revision)),
                ("Starts (UTC)", instant(row.starts_at)),
                ("Expires (UTC)", instant(row.expires_at, "never")),
                ("Grace until", instant(row.grace_until, "no grace")),
                ("Maintenance until", instant(row.maintenance_until, "no window")),
                ("Seats in use", used(row.seats_used, row.seat_limit)),
                ("Machines in use", used(row.activations_used, row.activation_limit)),
                ("Scheme", row.get_scheme_display()),
                ("First activated", instant(row.first_activated_at)),
            ],
            "tables": self._tables(request, row),
        }

    def _tables(self, request: HttpRequest, row: License) -> list[dict[str, Any]]:
        may_seat = request.user.has_perm("licensing.manage_seats")
        return [
            {
                "title": "Holds",
                "headers": ["Reason", "Placed", "Lifted", "Note"],
                "rows": [
                    [
                        hold.get_reason_display(),
                        instant(hold.placed_at),
                        instant(hold.lifted_at, "open"),
                        hold.note or "–",
                    ]
                    for hold in row.holds.order_by("-placed_at")[:SHOWN]
                ],
                "more": list_of(Hold, license__id__exact=row.pk),
            },
            {
                "title": "Seats",
                "headers": ["Holder", "State", "Assigned", "Released", ""],
                "rows": [
                    [
                        link_to(seat, seat.holder),
                        seat.state,
                        instant(seat.assigned_at),
                        instant(seat.released_at),
                        _act_link(seat, "release", "Release…") if may_seat and not seat.released_at else "",
                    ]
                    for seat in _live_first(row.seats.all(), "released_at")
                ],
                "more": list_of(Seat, license__id__exact=row.pk),
            },
            {
                "title": "Machines",
                "headers": ["Machine", "Platform", "Activated", "Last seen", "Ended", ""],
                "rows": [
                    [
                        link_to(machine, machine.name or f"{machine.fingerprint[:16]}…"),
                        machine.platform or "–",
                        instant(machine.activated_at),
                        instant(machine.last_seen_at),
                        instant(machine.deactivated_at),
                        _act_link(machine, "deactivate", "Let go…") if may_seat and not machine.deactivated_at else "",
                    ]
                    for machine in _live_first(row.activations.all(), "deactivated_at")
                ],
                "more": list_of(Activation, license__id__exact=row.pk),
            },
            {
                "title": "Allowances",
                "headers": ["Meter", "From", "To", "Used", "Allowance", "Reserved", "At most"],
                "rows": [
                    [
                        counter.meter,
                        instant(counter.starts_at),
                        instant(counter.ends_at),
                        quantity(counter.used),
                        quantity(counter.allowance, "none"),
                        quantity(counter.reserved),
                        quantity(counter.ceiling),
                    ]
                    for counter in row.counters.order_by("-starts_at", "meter")[:SHOWN]
                ],
                # The page of usage is billing's; like `object_link`, a page is known by its name.
                "more": f"{reverse('admin:usage')}?license={row.pk}",
            },
            {
                "title": "Terms",
                "headers": ["From", "Scheme", "Plan revision", "Reason", "Undone"],
                "rows": [
                    [
                        instant(term.starts_at),
                        term.get_scheme_display(),
                        str(term.plan_revision),
                        term.reason or "–",
                        instant(term.undone_at),
                    ]
                    for term in row.terms.select_related("plan_revision__plan")[:SHOWN]
                ],
                "more": list_of(Term, license__id__exact=row.pk),
            },
            {
                "title": "Last refusals",
                "headers": ["At", "Verdict", "Rules looked at", "Caller", "Request"],
                "rows": [
                    [instant(record.at), record.code, ", ".join(record.looked_at), record.caller, record.request_id]
                    for record in DecisionRecord.objects.filter(license_id=row.pk)[:SHOWN]
                ],
                "more": list_of(DecisionRecord, license_id=row.pk),
            },
            {
                "title": "Audit record",
                "headers": ["At", "Action", "By", "Reason"],
                "rows": [
                    [
                        link_to(entry, instant(entry.at)),
                        entry.action,
                        entry.actor_label or entry.actor_id,
                        entry.reason or "–",
                    ]
                    for entry in audit.opened(AuditEntry.objects.filter(license_id=row.pk)[:SHOWN])
                ],
                "more": list_of(AuditEntry, license_id=row.pk),
            },
        ]


def _live_first(rows: QuerySet[Any], ended: str) -> list[Any]:
    live = list(rows.filter(**{ended: None}).order_by("-id")[:SHOWN])
    return live + list(rows.filter(**{f"{ended}__isnull": False}).order_by("-id")[: SHOWN - len(live)])


def _act_link(row: Any, act: str, label: str) -> str:
    url = reverse(f"admin:licensing_{row._meta.model_name}_act", args=[row.pk, act])
    return format_html('<a class="staff-link" href="{}">{}</a>', url, label)


class OfLicense(StaffModelAdmin):
    """What hangs on a license: found by the license's id, and its acts lead back to the license."""

    list_select_related: ClassVar[tuple[str, ...]] = ("license__customer", "license__product")
    uuid_fields = ("license_id",)

    @theme.display(description="license")
    def license_shown(self, row: Any) -> str:
        return link_to(row.license, self.license_named(row))

    @theme.display(description="license")
    def license_named(self, row: Any) -> str:
        """Name the license where the cell is the link to the row's own page: no link stands in another."""
        return f"{row.license.customer}: {row.license.product}"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related(*self.list_select_related)


@admin.register(LicenseKey)
class LicenseKeyAdmin(OfLicense):
    """License keys by their last characters; revealed and replaced on the license's page."""

    list_display = ("__str__", "license_shown", "created_at", "retired_at")
    search_fields = ("=last5",)
    search_help_text = "Last 5 characters, or license id"
    list_filter = (("retired_at", admin.EmptyFieldListFilter),)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer("digest", "sealed")


@admin.register(Hold)
class HoldAdmin(OfLicense):
    """Holds over all licenses; placed and lifted on the license's page."""

    list_display = ("reason", "license_shown", "placed_at", "lifted_at", "note")
    list_filter = ("reason", ("lifted_at", admin.EmptyFieldListFilter))
    search_fields = ("license__customer__code", "license__customer__name")
    search_help_text = "Customer, or license id"
    date_hierarchy = "placed_at"


@admin.register(Term)
class TermAdmin(OfLicense):
    """Terms over all licenses; opened by issuing and by a change of plan."""

    list_display = ("starts_at", "license_shown", "scheme", "plan_revision", "reason", "undone_at")
    list_select_related = ("license__customer", "license__product", "plan_revision__plan")
    list_filter = ("scheme",)
    search_fields = ("license__customer__code", "license__customer__name")
    search_help_text = "Customer, or license id"


def _take_up(*, seat: Seat, by: Actor, at: datetime) -> Any:
    return seats.assign(license=seat.license, holder=seat.holder, by=by, at=at)


def _in(*states: SeatState) -> Callable[[Any, datetime], bool]:
    return lambda seat, at: seat.state in states


@admin.register(Seat)
class SeatAdmin(OfLicense, StaffHistoryAdmin):
    """Seats: released, transferred, blocked and unblocked; assigned on the license's page."""

    list_display = ("holder", "state_shown", "license_shown", "assigned_at", "released_at")
    list_filter = ("state",)
    search_fields = ("holder",)
    search_help_text = "Holder's email, or license id"
    fieldsets = ((None, {"fields": ("holder", "state", "license", "assigned_at", "released_at", "created_at", "id")}),)
    LABELS: ClassVar[dict[str, str]] = {
        "assigned": "success",
        "reserved": "info",
        "blocked": "danger",
        "released": "default",
    }
    acts = (
        Act(
            name="assign",
            label="Assign…",
            permission="licensing.manage_seats",
            rule=_take_up,
            row_as="seat",
            form=NoInputs,
            says=lambda seat, at: [f"The seat kept for {seat.holder} becomes theirs."],
            done="The seat is assigned.",
            offered=_in(SeatState.RESERVED),
            goes_to=lambda seat, result: seat.license,
        ),
        Act(
            name="release",
            label="Release…",
            permission="licensing.manage_seats",
            rule=seats.release,
            row_as="seat",
            says=lambda seat, at: [
                f"{seat.holder} loses the seat at once; it is free for somebody else.",
                "It counts against the plan's churn limit, when it has one.",
            ],
            done="The seat is released.",
            offered=lambda seat, at: seat.released_at is None,
            goes_to=lambda seat, result: seat.license,
        ),
        Act(
            name="transfer",
            label="Transfer…",
            permission="licensing.manage_seats",
            rule=seats.transfer,
            row_as="seat",
            form=HeirForm,
            says=lambda seat, at: [f"{seat.holder} loses the seat and the new holder gets it, in one step."],
            done="The seat is transferred.",
            offered=_in(SeatState.RESERVED, SeatState.ASSIGNED),
            goes_to=lambda seat, result: seat.license,
        ),
        Act(
            name="block",
            label="Block…",
            permission="licensing.manage_seats",
            rule=seats.block,
            row_as="seat",
            says=lambda seat, at: [f"{seat.holder} cannot use the seat; it stays taken, so nobody else gets it."],
            done="The seat is blocked.",
            offered=_in(SeatState.RESERVED, SeatState.ASSIGNED),
            danger=True,
            goes_to=lambda seat, result: seat.license,
        ),
        Act(
            name="unblock",
            label="Unblock…",
            permission="licensing.manage_seats",
            rule=seats.unblock,
            row_as="seat",
            says=lambda seat, at: [f"{seat.holder} may use the seat again."],
            done="The seat is unblocked.",
            offered=_in(SeatState.BLOCKED),
            goes_to=lambda seat, result: seat.license,
        ),
    )

    @theme.display(description="state", ordering="state", label=LABELS)
    def state_shown(self, seat: Seat) -> str:
        return seat.state

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term = search_term.strip().lower()
        if "@" in term:
            return queryset.filter(holder=term), False
        return super().get_search_results(request, queryset, search_term)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Holder", row.holder),
            ("State", row.state),
            ("License", link_to(row.license, str(row.license_id))),
            ("Customer", str(row.license.customer)),
            ("Seats", used(row.license.seats_used, row.license.seat_limit)),
        ]


@admin.register(Activation)
class ActivationAdmin(OfLicense, StaffHistoryAdmin):
    """Machines: seen and let go; activated only by the machine itself."""

    list_display = ("machine", "platform", "license_shown", "activated_at", "last_seen_at", "deactivated_at")
    list_filter = (("deactivated_at", admin.EmptyFieldListFilter),)
    search_fields = ("=fingerprint", "name")
    search_help_text = "Fingerprint, name, or license id"
    acts = (
        Act(
            name="deactivate",
            label="Let go…",
            permission="licensing.manage_seats",
            rule=activations.deactivate,
            row_as="activation",
            says=lambda machine, at: [
                "The license is no longer bound to this machine; its place is free at once.",
                "A floating seat it has out is free at once too, unless it borrowed it to work offline.",
                "It counts against the plan's churn limit, when it has one.",
            ],
            done="The machine is let go.",
            offered=lambda machine, at: machine.deactivated_at is None,
            goes_to=lambda machine, result: machine.license,
            danger=True,
        ),
    )

    @theme.display(description="machine")
    def machine(self, row: Activation) -> str:
        return row.name or f"{row.fingerprint[:16]}…"

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("Machine", row.name or "unnamed"),
            ("Fingerprint", row.fingerprint),
            ("License", link_to(row.license, str(row.license_id))),
            ("Customer", str(row.license.customer)),
        ]
