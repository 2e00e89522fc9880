"""Staff pages of people: users who sign in by email, groups of permissions, and wrong passwords.

Only a superuser changes them, so that nobody gives themselves more; each change is an audit entry, written in the
transaction of the change. Who acts for which customer is licensing's (`customers`).
"""

from typing import Any

from allauth.account import admin as _allauth  # noqa: F401  registers what is taken away below
from allauth.account.models import EmailAddress
from axes import admin as _axes  # noqa: F401  as above
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django import forms
from django.conf import settings
from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from licensing import audit
from licensing.admin.base import BoundedPaginator, StaffModelAdmin, Watched, list_of
from licensing.models import AuditEntry
from portal.access import actor_of
from portal.models import User

VIEWS = ("view_user", "view_group", "view_accessattempt")
RIGHTS = ("is_active", "is_staff", "is_superuser")


class NewUserForm(UserCreationForm):
    """A new person, by email and password."""

    class Meta:
        model = User
        fields = ("email",)
        field_classes: dict[str, Any] = {}

    def clean_email(self) -> str:
        email = str(self.cleaned_data["email"]).lower()
        if User.objects.filter(email=email).exists():
            raise forms.ValidationError("There is a person with this email address already.")
        return email


class _People(ModelAdmin):
    """What users and groups share: superusers change them, nobody deletes them, every change is recorded."""

    actions = None
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    compressed_fields = True

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        raise PermissionDenied

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(list_of(AuditEntry, object_kind=self.opts.model_name, object_id=object_id))

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        options.setdefault("widget", UnfoldAdminCheckboxSelectMultipleWidget())
        field = super().formfield_for_manytomany(db_field, request, **options)
        field.help_text = ""
        if db_field.related_model is Permission:
            # Only those a page of the staff site asks for: the packages' tables and histories have no pages.
            field.queryset = Permission.objects.filter(_asked_for()).select_related("content_type")
            field.label_from_instance = lambda permission: f"{permission.content_type.name}: {permission.name}"
        return field

    def facts(self, row: Any) -> dict[str, Any]:
        """Return what of a row the audit record keeps: its rights, nothing personal."""
        raise NotImplementedError

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        request.before = self.facts(self.model.objects.get(pk=obj.pk)) if change else {}  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        old, new = audit.differences(request.before, self.facts(form.instance))  # type: ignore[attr-defined]
        self.record(request, form.instance, "changed" if change else "created", old if change else {}, new)

    def record(self, request: HttpRequest, row: Any, verb: str, before: Any, after: Any) -> None:
        """Write the change's audit entry."""
        audit.record(
            action=f"{self.opts.model_name}.{verb}",
            by=actor_of(request),
            on=row,
            at=timezone.now(),
            before=before,
            after=after,
        )


@admin.register(User)
class UserAdmin(Watched, _People, DjangoUserAdmin):  # type: ignore[misc]  # the theme has no types
    """People who sign in: staff of ours, and customers' members."""

    form = UserChangeForm
    add_form = NewUserForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("email", "first_name", "last_name", "is_staff", "is_active", "last_login")
    list_filter = ("is_staff", "is_superuser", "is_active", "groups")
    search_fields = ("email", "first_name", "last_name")
    search_help_text = "Email or name"
    ordering = ("email",)
    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("email", "password")}),
        ("Name", {"fields": ("first_name", "last_name")}),
        ("Rights", {"fields": ("is_active", "is_staff", "is_superuser", "groups")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("email", "password1", "password2")}),)

    def facts(self, row: Any) -> dict[str, Any]:
        return {
            **{name: getattr(row, name) for name in RIGHTS},
            "groups": sorted(row.groups.values_list("name", flat=True)),
            "permissions": sorted(row.user_permissions.values_list("codename", flat=True)),
        }

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        with transaction.atomic():
            response: HttpResponse = super().user_change_password(request, id, form_url)
            if request.method == "POST" and response.status_code == 302:
                self.record(request, self.get_object(request, id), "password_set", {}, {})
        return response


def _asked_for() -> Q:
    ours = Q(content_type__app_label__in=("licensing", "billing")) & ~Q(content_type__model__startswith="historical")
    people = Q(content_type__app_label__in=("portal", "auth", "axes"), codename__in=VIEWS)
    return ours | people


class LockedFilter(admin.SimpleListFilter):
    """Whether so many wrong passwords were given that more are refused for a while."""

    title = "locked out"
    parameter_name = "locked"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "yes"), ("no", "no")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        match self.value():
            case "yes":
                return queryset.filter(failures_since_start__gte=settings.AXES_FAILURE_LIMIT)
            case "no":
                return queryset.filter(failures_since_start__lt=settings.AXES_FAILURE_LIMIT)
        return queryset


# What the packages bring would write past our rules: gone, or read-only under our base.
for model in (Group, EmailAddress, AccessAttempt, AccessLog, AccessFailureLog):
    if admin.site.is_registered(model):
        admin.site.unregister(model)


@admin.register(AccessAttempt)
class AccessAttemptAdmin(StaffModelAdmin):
    """Wrong passwords, read-only, without what was typed."""

    shows_personal = ("page", "list")
    list_display = ("username", "ip_address", "failures_since_start", "attempt_time", "path_info")
    list_filter = (LockedFilter,)
    search_fields = ("=username", "=ip_address")
    search_help_text = "Email or address, as it was given"
    fieldsets = (
        (
            None,
            {"fields": ("username", "ip_address", "user_agent", "path_info", "failures_since_start", "attempt_time")},
        ),
    )


@admin.register(Group)
class GroupAdmin(_People, DjangoGroupAdmin):  # type: ignore[misc]  # as above
    """Groups of permissions: what support, sales or finance may do."""

    list_display = ("name",)
    filter_horizontal = ()

    def facts(self, row: Any) -> dict[str, Any]:
        return {"name": row.name, "permissions": sorted(row.permissions.values_list("codename", flat=True))}
