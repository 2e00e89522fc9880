"""Staff pages of rollouts: how each stands, its licenses, and what would be different for them. All of it is read here;
the steps are commands, which the page spells out: they take long and show how far they are."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import Count, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest
from django.utils.html import format_html

from billing import rollout, shadow
from billing.models import Rollout, RolloutDifference, RolloutMember
from billing.states import ROLLOUT_TRANSITIONS, DifferenceKind, MemberState, RolloutStage
from licensing.admin import theme
from licensing.admin.base import StaffModelAdmin, figure, instant, link_to, list_of
from licensing.admin.licenses import OfLicense

STAGES = {
    **dict.fromkeys(RolloutStage.values, "info"),
    RolloutStage.FINAL: "success",
    RolloutStage.ROLLING_BACK: "warning",
    RolloutStage.ROLLED_BACK: "default",
}
STEPS = {
    RolloutStage.REHEARSED: (
        "rehearse",
        "Make every change and take it back, one by one; note what speaks against it.",
    ),
    RolloutStage.SHADOW: ("shadow", "Charge and decide by both terms, side by side; note what is different."),
    RolloutStage.CANARY: ("canary", "Switch so much of the licenses."),
    RolloutStage.ALL: ("all", "Switch all that are left."),
    RolloutStage.VERIFIED: ("verify", "See whether terms, seats, counters, events and money fit together."),
    RolloutStage.FINAL: ("final", "Keep it. From here on there is no way back."),
    RolloutStage.ROLLING_BACK: ("roll-back", "Put every license back as it was."),
}

FINDINGS = {
    "refused": "The rules refuse the change",
    "no_price": "No price in the customer's currency",
    "already_in_a_rollout": "Another open rollout has the license",
    "over_limit": "More is in use than would be allowed",
    "allowance_exceeded": "More was used this month than would be allowed",
    "seats_dormant": "Assigned seats would lie dormant",
    "not_usable": "The license is held or expired",
    "changed_since": "Changed by itself since; that stands",
    "broken": "Something does not fit together",
}


def commands(standing: rollout.Standing) -> list[tuple[str, str]]:
    """Return what can be run now, and what each does."""
    found: list[tuple[str, str]] = []
    back = STEPS[RolloutStage.ROLLING_BACK]
    if standing.stage in (RolloutStage.FINAL, RolloutStage.ROLLED_BACK):
        if standing.left:
            found.append(("resume", f"Go on: {standing.left} licenses are left of this step."))
    elif standing.stopped:
        found.append(("resume", "Go on with the step that was stopped."))
    elif standing.left or standing.stage == RolloutStage.ROLLING_BACK:
        found.append(("resume", f"Go on: {standing.left} licenses are left of this step."))
        found += [] if standing.stage == RolloutStage.ROLLING_BACK else [back]
        found.append(("stop", "Let no license be touched until it is resumed."))
    else:
        following = ROLLOUT_TRANSITIONS[RolloutStage(standing.stage)]
        found += [step for stage, step in STEPS.items() if stage in following]
        found.append(("stop", "Let no license be touched until it is resumed."))
    found += [("findings", "List what speaks against it."), ("differences", "List what would be different.")]
    percent = f" --percent {min(max(standing.percent, 5), 99)}"
    return [
        (f"manage.py rollout {name} {standing.code}{percent if name == 'canary' else ''}", what) for name, what in found
    ]


def _counted(model: Any, **filters: str) -> Coalesce:
    rows = model.objects.filter(rollout=OuterRef("pk"), **filters).order_by().values("rollout")
    return Coalesce(Subquery(rows.annotate(number=Count("pk")).values("number")), 0, output_field=IntegerField())


@admin.register(Rollout)
class RolloutAdmin(StaffModelAdmin):
    """Rollouts: how far each has come."""

    change_form_template = "admin/billing/rollout/change_form.html"
    list_before_template = "admin/billing/rollout/before_list.html"
    list_display = ("code", "plan", "plan_revision", "stage_shown", "percent", "licenses", "differences", "stopped_at")
    list_select_related = ("plan", "plan_revision__plan")
    list_filter = ("stage",)
    search_fields = ("code", "plan__code", "plan__name")
    search_help_text = "Name of the rollout, code or name of the plan"
    fieldsets = (
        (
            "Every field",
            {
                "classes": ("collapse",),
                "fields": (
                    *("code", "plan", "plan_revision", "reason", "stage", "percent"),
                    *("created_at", "enlisted_at", "stopped_at", "ended_at", "id"),
                ),
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Rollout]:
        members = {f"of_{state}": _counted(RolloutMember, state=state) for state in MemberState.values}
        rows = super().get_queryset(request).select_related(*self.list_select_related)
        return rows.annotate(**members, different=_counted(RolloutDifference))

    @theme.display(description="stage", ordering="stage", label=STAGES)
    def stage_shown(self, row: Rollout) -> tuple[str, str]:
        return row.stage, row.get_stage_display()

    @theme.display(description="licenses")
    def licenses(self, row: Any) -> str:
        counts = ((state.label.lower(), getattr(row, f"of_{state}")) for state in MemberState)
        return ", ".join(f"{number:,} {label}" for label, number in counts if number) or "none yet"

    @theme.display(description="differences")
    def differences(self, row: Any) -> str:
        return f"{row.different:,}"

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        stands = rollout.standing(row)
        mine = {"rollout__id__exact": row.pk}
        return {
            "colour": "danger" if stands.stopped else STAGES[row.stage],
            "badge": f"{row.get_stage_display()}, stopped" if stands.stopped else row.get_stage_display(),
            "facts": [
                ("Licenses of", link_to(row.plan)),
                ("Move to", link_to(row.plan_revision)),
                ("Switched at most", f"{row.percent} %"),
                ("Left of this step", f"{stands.left:,}"),
                ("Begun (UTC)", instant(row.created_at)),
                ("Ended (UTC)", instant(row.ended_at, "not yet")),
                ("Reason", row.reason),
            ],
            "tables": [
                {
                    "title": "What can be run now",
                    "headers": ["Command", "What it does"],
                    "help": "Run it on the server. It shows how far it is, and may be ended and resumed at any time.",
                    "rows": [
                        [format_html('<code class="staff-mono staff-command">{}</code>', run), what]
                        for run, what in commands(stands)
                    ],
                },
                {
                    "title": "Licenses",
                    "headers": ["State", "Number"],
                    "figures": ["Number"],
                    "empty": "The next step finds them.",
                    "rows": [
                        [
                            _link(RolloutMember, state.label, **mine, state__exact=state),
                            figure(f"{stands.members[state]:,}"),
                        ]
                        for state in MemberState
                        if state in stands.members
                    ],
                    "more": list_of(RolloutMember, **mine),
                },
                {
                    "title": "Live requests",
                    "headers": ["", "Requests"],
                    "rows": _live(stands.live),
                },
                {
                    "title": "Findings",
                    "headers": ["Finding", "Licenses"],
                    "rows": [
                        [FINDINGS.get(code, code), figure(f"{number:,}")]
                        for code, number in sorted(stands.findings.items())
                    ],
                    "figures": ["Licenses"],
                    "empty": "Nothing speaks against it so far. Rehearse looks for it.",
                },
                {
                    "title": "Differences",
                    "headers": ["Kind", "Number"],
                    "figures": ["Number"],
                    "empty": "None so far. Shadow looks for them.",
                    "rows": [
                        [
                            _link(RolloutDifference, kind.label, **mine, kind__exact=kind),
                            figure(f"{stands.differences[kind]:,}"),
                        ]
                        for kind in DifferenceKind
                        if kind in stands.differences
                    ],
                    "more": list_of(RolloutDifference, **mine),
                },
            ],
        }


def _live(live: shadow.Live) -> list[list[str]]:
    if live.since is None and not live.dropped:
        return []
    return [
        [f"Compared, of {live.licenses:,} licenses, since {live.since or 'never'}", f"{live.compared:,}"],
        ["Would be answered otherwise", f"{live.differed:,}"],
        ["Not compared, for want of room or for a fault", f"{live.dropped:,}"],
    ]


def _link(model: Any, text: str, **filters: object) -> str:
    return format_html('<a class="staff-link" href="{}">{}</a>', list_of(model, **filters), text)


@admin.register(RolloutMember)
class RolloutMemberAdmin(OfLicense):
    """Licenses in a rollout: how far each has come, and what was found about it."""

    list_display = ("license_named", "rollout", "state_shown", "switched_from", "found", "settled_at", "verified_at")
    list_select_related = ("rollout", "license__customer", "license__product")
    list_filter = ("state", "rollout")
    search_fields = ("license__customer__code", "license__customer__name")
    search_help_text = "Customer, or license id"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    *("license_shown", "rollout", "state", "switched_from", "found", "change"),
                    *("rehearsed_at", "shadowed_at", "settled_at", "verified_at", "created_at", "id"),
                )
            },
        ),
    )

    @theme.display(
        description="state",
        ordering="state",
        label={
            "pending": "info",
            "switched": "warning",
            "final": "success",
            "skipped": "danger",
            "reverted": "default",
        },
    )
    def state_shown(self, row: RolloutMember) -> tuple[str, str]:
        return row.state, row.get_state_display()

    @theme.display(description="switched from", ordering="place")
    def switched_from(self, row: RolloutMember) -> str:
        return f"{row.place + 1} %"

    @theme.display(description="findings")
    def found(self, row: RolloutMember) -> str:
        return " ".join(each["text"] for each in row.findings) or "–"


@admin.register(RolloutDifference)
class RolloutDifferenceAdmin(OfLicense):
    """What would be different under a rollout's terms: in money, decisions or limits, and why."""

    list_display = ("license_named", "rollout", "kind", "subject", "before", "after", "reason")
    list_select_related = ("rollout", "license__customer", "license__product")
    list_filter = ("kind", "rollout")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "license_shown",
                    "rollout",
                    "kind",
                    "subject",
                    "before",
                    "after",
                    "reason",
                    "created_at",
                    "id",
                )
            },
        ),
    )
    search_fields = ("license__customer__code", "license__customer__name", "=subject")
    search_help_text = "Customer, subject, or license id"
