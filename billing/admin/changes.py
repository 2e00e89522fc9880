"""Staff pages of changes of scheme or plan: previewed with their money, made, scheduled, called off and undone.

The acts stand on a license's page, which is licensing's, and on the list of changes.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin
from django.utils.dateparse import parse_datetime

from billing import changes, words
from licensing import switches
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import figure, instant, link_to, quantity
from licensing.admin.forms import ActForm, why
from licensing.admin.licenses import LicenseAdmin, OfLicense
from licensing.audit import Actor
from licensing.models import License, PlanRevision, SchemeChange
from licensing.states import ChangeState, RevisionState

MAY_CHANGE = "licensing.change_license"
OPEN = (ChangeState.SCHEDULED, ChangeState.APPLIED)


class ChangeForm(ActForm):
    """Which terms apply, from when, and why: revisions of the license's product that are offered."""

    plan_revision = forms.ModelChoiceField(
        PlanRevision.objects.none(), label="New terms", widget=theme.Select, empty_label="Choose a plan and its scheme"
    )
    starts_at = forms.SplitDateTimeField(
        label="From (UTC)", required=False, widget=theme.DateTimeInput, help_text="Empty: now, when you confirm."
    )
    reason = why()

    def __init__(self, *args: Any, row: License, at: datetime, **options: Any) -> None:
        super().__init__(*args, row=row, at=at, **options)
        field = self.fields["plan_revision"]
        assert isinstance(field, forms.ModelChoiceField)
        field.queryset = (
            PlanRevision.objects.filter(plan__product=row.product_id, state=RevisionState.PUBLISHED)
            .exclude(pk=row.plan_revision_id)
            .select_related("plan")
        )
        setattr(field, "label_from_instance", _offered)  # noqa: B010  as Django documents it, which mypy cannot

    def clean_starts_at(self) -> datetime | None:
        starts_at: datetime | None = self.cleaned_data["starts_at"]
        if starts_at is not None and starts_at <= self.at:
            raise forms.ValidationError("This instant is past. Leave it empty to change the license now.")
        return starts_at


def _offered(revision: PlanRevision) -> str:
    return f"{revision} ({revision.scheme})"


def _preview(
    *,
    license: License,
    plan_revision: PlanRevision,
    starts_at: datetime | None,
    reason: str,
    by: Actor,
    at: datetime,
) -> list[dict[str, Any]]:
    shown = changes.preview(license=license, plan_revision=plan_revision, starts_at=starts_at, by=by, at=at)
    month, currency = f"{shown.period.starts_at:%B %Y}", shown.currency
    return [
        {
            "title": "Limits",
            "headers": ["Limit", "Before", "After", "Different"],
            "rows": [
                [
                    limit.name.replace("expires_at", "expires (UTC)"),
                    _limit(limit.name, limit.before),
                    _limit(limit.name, limit.after),
                    "yes" if limit.before != limit.after else "",
                ]
                for limit in shown.limits
            ],
        },
        *(
            {
                "title": f"{month} {side} the change: {words.money(money.total_minor, currency)} without tax",
                "headers": ["What", "From", "To", "Quantity", "Price", "Amount"],
                "figures": ["Quantity", "Price", "Amount"],
                "empty": "Nothing is charged.",
                "rows": list(_lines(money, currency)),
            }
            for side, money in (("without", shown.money_before), ("with", shown.money_after))
        ),
    ]


def _limit(name: str, value: str | None) -> str:
    return instant(parse_datetime(value)) if name == "expires_at" and value else words.limit(name, value)


def _lines(money: changes.Money, currency: str) -> Iterator[list[Any]]:
    for line in money.lines:
        yield [
            line.description,
            instant(line.starts_at),
            instant(line.ends_at),
            figure(quantity(line.quantity, "")),
            figure(words.unit_price(line.unit_amount, currency) if line.unit_amount is not None else "–"),
            figure(words.money(line.amount_minor, currency)),
        ]


def _says_change(license: License, at: datetime) -> list[str]:
    return [
        f"The license leaves {license.plan_revision} and keeps its id, key, machines and seats.",
        "Its limits become those of the new terms. The fee of the rest of the month is credited by time, the new one "
        "charged by time. Where more is in use nobody is thrown out.",
        "First you see limits and money on either side; nothing happens until you confirm.",
    ]


_SAYS_UNDONE = [
    "The time since is charged by the former terms. What was used stays, and what other acts did meanwhile.",
    "That is possible until a statement of the new terms is final.",
]


def _says_undo(license: License, at: datetime) -> list[str]:
    found = SchemeChange.objects.filter(license=license, state__in=OPEN).select_related("plan_revision__plan")
    scheduled = found.filter(state=ChangeState.SCHEDULED).first()
    if scheduled is not None:
        return [f"The change {scheduled} UTC is called off. Nothing has changed yet."]
    last = found.order_by("-starts_at").first()
    return [
        f"The change {last} UTC is taken back as if it had never been." if last else "There is no change to undo.",
        *_SAYS_UNDONE,
    ]


LicenseAdmin.offer(
    Act(
        name="change-terms",
        label="Change scheme or plan…",
        permission=MAY_CHANGE,
        rule=changes.change,
        row_as="license",
        form=ChangeForm,
        preview=_preview,
        says=_says_change,
        done="The change is made, or scheduled for its instant.",
        offered=lambda license, at: license.issued_at is not None and license.revoked_at is None,
        group="more",
    ),
    Act(
        name="undo-change",
        label="Undo change…",
        permission=MAY_CHANGE,
        rule=changes.undo,
        row_as="license",
        says=_says_undo,
        done="The change is undone.",
        offered=lambda license, at: SchemeChange.objects.filter(license=license, state__in=OPEN).exists(),
        group="more",
    ),
)


def _undo(*, change: SchemeChange, by: Actor, at: datetime, reason: str) -> SchemeChange:
    return changes.undo(license=change.license, change=change, by=by, at=at, reason=reason)


@admin.register(SchemeChange)
class SchemeChangeAdmin(OfLicense):
    """Changes of scheme or plan over all licenses; made and scheduled on the license's page."""

    list_display = ("starts_at", "license_shown", "plan_revision", "state_shown", "reason", "actor_label")
    list_select_related = ("license__customer", "license__product", "plan_revision__plan")
    list_filter = ("state",)
    search_fields = ("license__customer__code", "license__customer__name")
    search_help_text = "Customer, or license id"
    date_hierarchy = "starts_at"
    fieldsets = (
        (
            None,
            {
                "fields": (
                    *("license", "plan_revision", "starts_at", "state", "refusal", "reason"),
                    *("actor_label", "actor_kind", "applied_at", "ended_at", "term", "created_at", "id"),
                )
            },
        ),
    )
    acts = (
        Act(
            name="cancel",
            label="Call off…",
            permission=MAY_CHANGE,
            rule=switches.cancel,
            row_as="change",
            says=lambda change, at: ["The change is called off before it is made. The license stays as it is."],
            done="The change is called off.",
            offered=lambda change, at: change.state == ChangeState.SCHEDULED,
        ),
        Act(
            name="undo",
            label="Undo…",
            permission=MAY_CHANGE,
            rule=_undo,
            row_as="change",
            says=lambda change, at: _SAYS_UNDONE,
            done="The change is undone.",
            offered=lambda change, at: change.state == ChangeState.APPLIED,
        ),
    )

    @theme.display(
        description="state",
        ordering="state",
        label={
            "scheduled": "info",
            "applied": "success",
            "undone": "default",
            "cancelled": "default",
            "refused": "danger",
        },
    )
    def state_shown(self, change: SchemeChange) -> str:
        return change.state

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            ("License", link_to(row.license, f"{row.license.customer}: {row.license.product}")),
            ("To", str(row.plan_revision)),
            ("From (UTC)", instant(row.starts_at)),
            ("State", row.state),
            ("Asked for by", row.actor_label or row.actor_kind),
        ]
