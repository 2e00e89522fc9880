"""Staff pages of meters and prices, and of their revisions."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join

from billing import meters, prices
from billing.models import Meter, MeterRevision, Price, PriceRevision
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, instant, link_to, list_of
from licensing.admin.forms import ActForm, NoInputs, OptionalReasonForm, RowForm, why
from licensing.audit import Actor
from licensing.catalog import Difference
from licensing.states import RevisionState

STATES = {"draft": "warning", "published": "success", "retired": "default"}


class LinesField(forms.CharField):
    """A list of names, one a line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("widget", theme.Textarea(attrs={"rows": 3}))
        super().__init__(required=False, **options)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        return [line.strip() for line in (value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool((initial or []) != self.to_python(data))


class FiltersField(LinesField):
    """Which values of which dimension count: `region = eu, us`, one dimension a line."""

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return "\n".join(f"{name} = {', '.join(values)}" for name, values in value.items())

    def to_python(self, value: Any) -> Any:
        found: dict[str, list[str]] = {}
        for line in super().to_python(value):
            name, equals, values = line.partition("=")
            if not equals:
                raise forms.ValidationError(f"Write a dimension, = and the values that count: '{line[:60]}' has no =.")
            if name.strip() in found:
                raise forms.ValidationError(f"'{name.strip()}' stands on two lines; write its values on one.")
            found[name.strip()] = [each.strip() for each in values.split(",") if each.strip()]
        return found

    def has_changed(self, initial: Any, data: Any) -> bool:
        return True  # a line that cannot be read is said when it is cleaned


class ComponentsField(forms.JSONField):
    """Components of a price as JSON, laid out to be read."""

    default_error_messages: ClassVar[dict[str, Any]] = {
        "invalid": "This is no JSON: look for a missing comma or quote."
    }

    def __init__(self, **options: Any) -> None:
        options.setdefault("widget", theme.Textarea(attrs={"rows": 16, "spellcheck": "false", "class": "staff-mono"}))
        super().__init__(**options)

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


class MeterRevisionForm(RowForm):
    """What a meter counts."""

    dimensions = LinesField(help_text="What an event may say of itself, one name a line, e.g. region.")
    filters = FiltersField(
        help_text="Which events count, e.g. region = eu, us. One dimension a line. Empty: every one."
    )

    class Meta:
        model = MeterRevision
        fields: tuple[str, ...] = ()
        help_texts = {"unique_by": "The dimension whose different values are counted; only with 'number of different'."}


class PriceRevisionForm(RowForm):
    """What a price asks for."""

    components = ComponentsField(help_text="A list of components as JSON; docs/pricing.md names the kinds.")

    class Meta:
        model = PriceRevision
        fields: tuple[str, ...] = ()


class PublishPriceForm(ActForm):
    """From when the price holds, and why."""

    effective_at = forms.SplitDateTimeField(
        label="Effective from (UTC)", required=False, widget=theme.DateTimeInput, help_text="Empty: from now on."
    )
    reason = why(required=False)


def _is(state: RevisionState) -> Callable[[Any, datetime], bool]:
    return lambda revision, at: revision.state == state


class _Described(StaffHistoryAdmin):
    """What has a code or a currency of its own, and its revisions besides."""

    revisions: ClassVar[Any]
    owner: ClassVar[str]

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {"links": [("Revisions", list_of(self.revisions, **{f"{self.owner}__id__exact": row.pk}))]}


def _draft_act(rule: Callable[..., Any], owner: str, permission: str) -> Act:
    return Act(
        name="draft",
        label="Draft new revision…",
        permission=permission,
        rule=rule,
        row_as=owner,
        form=NoInputs,
        says=lambda row, at: [
            "A draft is made of what the newest revision says. Change it, then publish it.",
            "Until then nothing is counted or asked for differently.",
        ],
        done="The draft is made. Change it here, then publish it.",
        goes_to=lambda row, revision: revision,
    )


def _draft_meter(*, meter: Meter, by: Actor, at: datetime) -> MeterRevision:
    return meters.draft(meter=meter, by=by, at=at)


def _draft_price(*, price: Price, by: Actor, at: datetime) -> PriceRevision:
    return prices.draft(price=price, by=by, at=at)


@admin.register(Meter)
class MeterAdmin(_Described):
    """Meters: made and described, never deleted; the code stays, for events name it."""

    change_form_template = "admin/billing/meter/change_form.html"
    list_display = ("code", "name", "created_at")
    search_fields = ("code", "name")
    search_help_text = "Code or name"
    adds = ("code", "name", "description")
    edits = ("name", "description")
    revisions, owner = MeterRevision, "meter"
    acts = (_draft_act(_draft_meter, "meter", "billing.add_meterrevision"),)

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return meters.create(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        meters.describe(meter=form.instance, **form.cleaned_data, by=self.by(request), at=at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        doubts = [str(doubt) for doubt in meters.doubts() if doubt.meter == row.code]
        return {**super().panels(request, row, at), "doubts": doubts}


@admin.register(Price)
class PriceAdmin(_Described):
    """Prices: of a plan in a currency. What is asked for stands in the revisions."""

    list_display = ("plan", "currency", "product", "created_at")
    list_select_related = ("plan__product",)
    list_filter = ("currency", "plan__product")
    search_fields = ("plan__code", "plan__name", "plan__product__code", "=currency")
    search_help_text = "Code or name of the plan, product code, or currency"
    autocomplete_fields = ("plan",)
    adds = ("plan", "currency")
    uuid_fields = ("plan_id",)
    revisions, owner = PriceRevision, "price"
    acts = (_draft_act(_draft_price, "price", "billing.add_pricerevision"),)

    @theme.display(description="product", ordering="plan__product")
    def product(self, price: Price) -> str:
        return str(price.plan.product)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Price]:
        return super().get_queryset(request).select_related("plan__product")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return prices.create(**form.cleaned_data, by=self.by(request), at=at)


class _Revision(StaffHistoryAdmin):
    """A revision: drafted, edited, published, retired. A published one is only read, beside the one before it."""

    change_form_template = "admin/licensing/planrevision/change_form.html"
    owner: ClassVar[str]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related(*self.list_select_related)

    @theme.display(description="state", ordering="state", label=STATES)
    def state_shown(self, revision: Any) -> str:
        return revision.state

    def editable(self, row: Any) -> bool:
        return row.state == RevisionState.DRAFT

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            (self.owner.capitalize(), str(getattr(row, self.owner))),
            ("Revision", row.number),
            ("State", row.state),
        ]

    def different(self, before: Any, after: Any) -> list[Difference]:
        """Return what is different in `after`, in words."""
        raise NotImplementedError

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        siblings = self.model.objects.filter(**{self.owner: getattr(row, f"{self.owner}_id")}, number__lt=row.number)
        earlier = siblings.order_by("-number").first()
        return {
            "earlier": earlier,
            "earlier_link": link_to(earlier, f"revision {earlier.number}") if earlier else "",
            "differences": self.different(earlier, row) if earlier else [],
        }


def _discard_act(rule: Callable[..., Any], model: Any, owner: str, permission: str) -> Act:
    return Act(
        name="discard",
        label="Discard draft…",
        permission=permission,
        rule=rule,
        row_as="revision",
        form=NoInputs,
        says=lambda revision, at: ["The draft is deleted. Nothing was ever counted or asked for by it."],
        done="The draft is discarded.",
        offered=_is(RevisionState.DRAFT),
        goes_to=lambda revision, result: list_of(model, **{f"{owner}__id__exact": getattr(revision, f"{owner}_id")}),
        danger=True,
    )


def _says_count(revision: MeterRevision, at: datetime) -> list[str]:
    before = MeterRevision.objects.filter(meter=revision.meter_id, state=RevisionState.PUBLISHED).first()
    return [
        f"Events of {revision.meter} that come in from now on are counted by this revision. It can never be changed.",
        f"Revision {before.number} is retired." if before else "Until now no event of this meter was taken.",
        "What was counted before stays as it was counted.",
    ]


@admin.register(MeterRevision)
class MeterRevisionAdmin(_Revision):
    """Meter revisions: how a meter counts."""

    list_display = ("__str__", "state_shown", "aggregation", "unit", "dimensions_shown", "published_at")
    list_select_related = ("meter",)
    list_filter = ("state", "aggregation")
    search_fields = ("meter__code", "meter__name")
    search_help_text = "Code or name of the meter"
    autocomplete_fields = ("meter",)
    form = MeterRevisionForm
    add_form = RowForm
    adds = ("meter",)
    edits = meters.TERMS
    uuid_fields = ("meter_id",)
    owner = "meter"
    fieldsets = (
        ("Revision", {"fields": ("meter", "number", "state", "published_at", "retired_at")}),
        ("What counts", {"fields": meters.TERMS}),
    )
    acts = (
        Act(
            name="publish",
            label="Publish…",
            permission="billing.change_meterrevision",
            rule=meters.publish,
            row_as="revision",
            form=OptionalReasonForm,
            says=_says_count,
            done="The revision is published.",
            offered=_is(RevisionState.DRAFT),
        ),
        Act(
            name="retire",
            label="Retire…",
            permission="billing.change_meterrevision",
            rule=meters.retire,
            row_as="revision",
            says=lambda revision, at: [
                f"Events of {revision.meter} are refused from now on, until another revision is published.",
                "What was counted stays, and stays billed.",
            ],
            done="The revision is retired.",
            offered=_is(RevisionState.PUBLISHED),
            danger=True,
        ),
        _discard_act(meters.discard, MeterRevision, "meter", "billing.delete_meterrevision"),
    )

    @theme.display(description="dimensions")
    def dimensions_shown(self, revision: MeterRevision) -> str:
        return meters.said(revision, "dimensions")

    def different(self, before: Any, after: Any) -> list[Difference]:
        return meters.diff(before, after)

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return meters.draft(meter=form.cleaned_data["meter"], by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return meters.edit(revision=form.instance, by=self.by(request), at=at, **form.cleaned_data)


def _says_price(revision: PriceRevision, at: datetime) -> list[str]:
    return [
        f"Every stretch of a license under {revision.price.plan} that begins then or later costs what is said here.",
        "A stretch that has begun is rated to its end by the price it began with.",
        "The revision can never be changed again. Until it is effective it can be retired.",
    ]


@admin.register(PriceRevision)
class PriceRevisionAdmin(_Revision):
    """Price revisions: what a plan costs in a currency, from an instant on."""

    list_display = ("__str__", "state_shown", "effective_at", "published_at")
    list_select_related = ("price__plan__product",)
    list_filter = ("state", "price__currency", "price__plan__product")
    search_fields = ("price__plan__code", "price__plan__name", "=price__currency")
    search_help_text = "Code or name of the plan, or currency"
    form = PriceRevisionForm
    add_form = RowForm
    adds = ("price",)
    edits = ("components",)
    uuid_fields = ("price_id",)
    owner = "price"
    fieldsets = (
        ("Revision", {"fields": ("price", "number", "state", "effective_at", "published_at", "retired_at")}),
        ("What is asked for", {"fields": ("in_words", "components")}),
    )
    acts = (
        Act(
            name="publish",
            label="Publish…",
            permission="billing.change_pricerevision",
            rule=prices.publish,
            row_as="revision",
            form=PublishPriceForm,
            says=_says_price,
            done="The price is published.",
            offered=_is(RevisionState.DRAFT),
        ),
        Act(
            name="retire",
            label="Retire…",
            permission="billing.change_pricerevision",
            rule=prices.retire,
            row_as="revision",
            says=lambda revision, at: ["It will not become effective: the price before it holds on."],
            done="The price is retired.",
            offered=lambda revision, at: (
                revision.state == RevisionState.PUBLISHED and bool(revision.effective_at) and revision.effective_at > at
            ),
            danger=True,
        ),
        _discard_act(prices.discard, PriceRevision, "price", "billing.delete_pricerevision"),
    )

    @theme.display(description="in words")
    def in_words(self, revision: PriceRevision) -> str:
        said = [(words,) for words in prices.said(revision)]
        return format_html_join("", "<p>{}</p>", said) or "–"

    def different(self, before: Any, after: Any) -> list[Difference]:
        return prices.diff(before, after)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [
            *super().act_facts(row, at),
            ("Effective (UTC)", instant(row.effective_at, "not yet")),
            ("Asks for", self.in_words(row)),
        ]

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return prices.draft(price=form.cleaned_data["price"], by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return prices.edit(
            revision=form.instance, components=form.cleaned_data["components"], by=self.by(request), at=at
        )
