"""Staff pages of what is sold: products, releases, plans, plan revisions and their entitlements."""

from datetime import datetime
from typing import Any, ClassVar

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from licensing import catalog
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.base import StaffHistoryAdmin, StaffModelAdmin, link_to, list_of
from licensing.admin.forms import NoInputs, OptionalReasonForm, RowForm
from licensing.audit import Actor
from licensing.catalog import Grant
from licensing.models import Entitlement, Plan, PlanRevision, Product, Release
from licensing.states import RevisionState


@admin.register(Product)
class ProductAdmin(StaffHistoryAdmin):
    """Products: made and described, never deleted; the code stays."""

    list_display = ("code", "name", "created_at")
    search_fields = ("code", "name")
    search_help_text = "Code or name"
    adds = ("code", "name", "description")
    edits = ("name", "description")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return catalog.create_product(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        catalog.describe(row=form.instance, **form.cleaned_data, by=self.by(request), at=at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {
            "links": [
                ("Plans", list_of(Plan, product__id__exact=row.pk)),
                ("Releases", list_of(Release, product__id__exact=row.pk)),
            ]
        }


@admin.register(Release)
class ReleaseAdmin(StaffModelAdmin):
    """Releases: when a version came out, for maintenance windows."""

    list_display = ("version", "product", "released_at")
    list_select_related = ("product",)
    list_filter = ("product",)
    search_fields = ("version", "product__code")
    search_help_text = "Version or product code"
    date_hierarchy = "released_at"
    autocomplete_fields = ("product",)
    adds = ("product", "version", "released_at")

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return catalog.add_release(**form.cleaned_data, by=self.by(request), at=at)


def _draft(*, plan: Plan, by: Actor, at: datetime) -> PlanRevision:
    return catalog.draft(plan=plan, by=by, at=at)


@admin.register(Plan)
class PlanAdmin(StaffHistoryAdmin):
    """Plans: a named offer of a product. What it grants stands in its revisions."""

    list_display = ("name", "code", "product", "created_at")
    list_select_related = ("product",)
    list_filter = ("product",)
    search_fields = ("code", "name", "product__code", "product__name")
    search_help_text = "Code or name of plan or product"
    autocomplete_fields = ("product",)
    adds = ("product", "code", "name", "description")
    edits = ("name", "description")
    acts = (
        Act(
            name="draft",
            label="Draft new revision…",
            permission="licensing.add_planrevision",
            rule=_draft,
            row_as="plan",
            form=NoInputs,
            says=lambda plan, at: [
                "A draft is made with the terms of the newest revision. Change it, then publish it.",
                "Nothing is offered or changed for any license yet.",
            ],
            done="The draft is made. Change its terms here, then publish it.",
            goes_to=lambda plan, revision: revision,
        ),
    )

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return catalog.create_plan(**form.cleaned_data, by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        catalog.describe(row=form.instance, **form.cleaned_data, by=self.by(request), at=at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        return {"links": [("Revisions", list_of(PlanRevision, plan__id__exact=row.pk))]}


class GrantInline(theme.TabularInline):
    """The entitlements of a revision: changed while it is a draft, shown after."""

    model = Entitlement
    form = RowForm
    fields = ("key", "kind", "value", "meter", "amount", "overage")
    extra = 0
    verbose_name_plural = "entitlements"
    show_change_link = False

    def _may(self, request: HttpRequest, obj: Any) -> bool:
        draft = obj is not None and obj.state == RevisionState.DRAFT
        return draft and request.user.has_perm("licensing.change_planrevision")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, obj)


def _is(state: RevisionState) -> Any:
    return lambda revision, at: revision.state == state


def _says_publish(revision: PlanRevision, at: datetime) -> list[str]:
    offered = PlanRevision.objects.filter(plan=revision.plan_id, state=RevisionState.PUBLISHED).first()
    return [
        f"{revision} is offered for sale from now on. Its terms can never be changed again.",
        f"Revision {offered.number} is retired." if offered else "Nothing of this plan was offered until now.",
        "Licenses stay under the revision they have.",
    ]


@admin.register(PlanRevision)
class PlanRevisionAdmin(StaffHistoryAdmin):
    """Plan revisions: drafted, edited, published, retired. A published one is only read."""

    change_form_template = "admin/licensing/planrevision/change_form.html"
    list_display = ("__str__", "state_shown", "scheme", "seat_limit", "activation_limit", "published_at")
    list_select_related = ("plan__product",)
    list_filter = ("state", "scheme", "trial", "plan__product")
    search_fields = ("plan__code", "plan__name", "plan__product__code")
    search_help_text = "Code or name of plan or product"
    date_hierarchy = "published_at"
    inlines = (GrantInline,)
    autocomplete_fields = ("plan",)
    adds = ("plan",)
    edits = catalog.TERMS
    uuid_fields = ("plan_id",)
    fieldsets = (
        ("Revision", {"fields": ("plan", "number", "state", "published_at", "retired_at")}),
        ("Scheme", {"fields": ("scheme", "trial")}),
        ("Seats", {"fields": ("seat_kind", "seat_limit", "seat_required", "seat_churn_limit")}),
        (
            "Machines",
            {
                "fields": (
                    "activation_limit",
                    "activation_required",
                    "fingerprint_scope",
                    "activation_churn_limit",
                    "churn_window",
                    "activation_dead_after",
                )
            },
        ),
        (
            "Time",
            {
                "fields": (
                    "validity_basis",
                    "duration",
                    "fixed_expires_at",
                    "renewal_basis",
                    "grace_period",
                    "maintenance",
                )
            },
        ),
        (
            "Clients",
            {
                "fields": (
                    "require_signed_clients",
                    "lease_duration",
                    "offline_period",
                    "outage_policy",
                    "outage_tolerance",
                )
            },
        ),
    )
    acts = (
        Act(
            name="publish",
            label="Publish…",
            permission="licensing.change_planrevision",
            rule=catalog.publish,
            row_as="revision",
            form=OptionalReasonForm,
            says=_says_publish,
            done="The revision is published.",
            offered=_is(RevisionState.DRAFT),
        ),
        Act(
            name="retire",
            label="Retire…",
            permission="licensing.change_planrevision",
            rule=catalog.retire,
            row_as="revision",
            says=lambda revision, at: [
                f"{revision} is no longer offered: no license can be issued under it.",
                "Licenses that have it go on as they are.",
            ],
            done="The revision is retired.",
            offered=_is(RevisionState.PUBLISHED),
            danger=True,
        ),
        Act(
            name="discard",
            label="Discard draft…",
            permission="licensing.delete_planrevision",
            rule=catalog.discard,
            row_as="revision",
            form=NoInputs,
            says=lambda revision, at: ["The draft is deleted. It was never offered to anybody."],
            done="The draft is discarded.",
            offered=_is(RevisionState.DRAFT),
            goes_to=lambda revision, result: list_of(PlanRevision, plan__id__exact=revision.plan_id),
            danger=True,
        ),
    )
    STATES: ClassVar[dict[str, str]] = {"draft": "warning", "published": "success", "retired": "default"}

    @theme.display(description="state", ordering="state", label=STATES)
    def state_shown(self, revision: PlanRevision) -> str:
        return revision.state

    def get_queryset(self, request: HttpRequest) -> QuerySet[PlanRevision]:
        return super().get_queryset(request).select_related("plan__product")

    def editable(self, row: PlanRevision) -> bool:
        return row.state == RevisionState.DRAFT

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return self.inlines if obj else ()

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        return catalog.draft(plan=form.cleaned_data["plan"], by=self.by(request), at=at)

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        terms = {name: value for name, value in form.cleaned_data.items() if name in catalog.TERMS}
        grants = [
            Grant(**{name: line[name] for name in GrantInline.fields})
            for formset in formsets
            for line in (line.cleaned_data for line in formset.forms)
            if line and not line.get("DELETE")
        ]
        return catalog.edit(revision=form.instance, grants=grants, by=self.by(request), at=at, **terms)

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        return [("Plan", f"{row.plan} ({row.plan.product})"), ("Revision", row.number), ("State", row.state)]

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        earlier = (
            PlanRevision.objects.filter(plan=row.plan_id, number__lt=row.number)
            .select_related("plan")
            .order_by("-number")
            .first()
        )
        return {
            "earlier": earlier,
            "earlier_link": link_to(earlier, f"revision {earlier.number}") if earlier else "",
            "differences": catalog.diff(earlier, row) if earlier else [],
        }


@admin.register(Entitlement)
class EntitlementAdmin(StaffModelAdmin):
    """Entitlements over all revisions, to find who grants what; changed on their revision's page."""

    list_display = ("key", "plan_revision", "kind", "value", "meter", "amount", "overage")
    list_select_related = ("plan_revision__plan",)
    list_filter = ("kind", "overage", "plan_revision__state")
    search_fields = ("key", "meter", "plan_revision__plan__code")
    search_help_text = "Key, meter or plan code"
    uuid_fields = ("plan_revision_id",)
