"""The base of all staff admin pages: read-only, no deletion, and every change through a rule function.

`adds` and `edits` name the fields a form has, `rule_add` and `rule_change` call the rule; a model without them has
no form. `acts` are the buttons of a row's page. What a rule refuses is an error of the form. Nothing here writes to
a table.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import ShowFacets
from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from simple_history.admin import SimpleHistoryAdmin

from licensing import audit, keyformat, observations
from licensing.admin import theme
from licensing.admin.acts import Act
from licensing.admin.forms import RowForm, SpanField, said, show
from licensing.audit import Actor
from licensing.errors import LicensingError
from licensing.models import AuditEntry, Customer

COUNTED_UP_TO = 10_000


def looks_secret(text: str) -> bool:
    """Say whether `text` is, or holds, a license key or an API secret, also a mistyped or cut one."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKC", text).upper() if sign.isalnum())
    return bool(
        keyformat.PATTERN.search(text)
        or (plain.startswith(keyformat.PREFIX) and len(plain) >= 15)
        or re.search(r"lsk_[A-Za-z0-9_-]{8}", text)
    )


def as_uuid(text: str) -> UUID | None:
    """Return the id that was typed, if it is one."""
    try:
        return UUID(text.strip())
    except ValueError:
        return None


def page_of(row: models.Model) -> str:
    """Return the address of a row's page."""
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])


def link_to(row: models.Model | None, text: str = "") -> str:
    """Return a link to a row's page."""
    return format_html('<a class="staff-link" href="{}">{}</a>', page_of(row), text or str(row)) if row else "–"


def list_of(model: type[models.Model], **filters: object) -> str:
    """Return the address of a model's list under exact filters."""
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    return f"{reverse(f'admin:{model._meta.app_label}_{model._meta.model_name}_changelist')}?{query}"


def instant(at: datetime | None, otherwise: str = "–") -> str:
    """Return an instant to the minute, in UTC, that no line breaks in two; to the second on hovering."""
    if at is None:
        return otherwise
    return format_html(
        '<time class="staff-time" datetime="{}" title="{} UTC">{}</time>',
        at.isoformat(),
        f"{at:%Y-%m-%d %H:%M:%S}",
        f"{at:%Y-%m-%d %H:%M}",
    )


def figure(text: object) -> str:
    """Return an amount, quantity or number for a table's cell: all figures of a column stand one below the other."""
    return format_html('<span class="staff-amount">{}</span>', text)


def quantity(amount: Decimal | None, otherwise: str = "no limit") -> str:
    """Return a quantity in groups of three digits, without zeros at its end."""
    if amount is None:
        return otherwise
    text = f"{amount:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def told(value: Any) -> Any:
    """Return a JSON value, time span or instant as a person reads it."""
    match value:
        case timedelta():
            return said(value)
        case datetime():
            return instant(value)
        case Decimal():
            return quantity(value)
        case dict() if value:
            pairs = ((name.replace("_", " "), told(item)) for name, item in value.items())
            rows = format_html_join("", "<dt>{}</dt><dd>{}</dd>", pairs)
            return format_html('<dl class="staff-pairs">{}</dl>', rows)
        case list() if value and all(isinstance(item, dict) for item in value):
            return format_html_join("", "{}", ((told(item),) for item in value))
        case list() if value:
            return ", ".join(str(told(item)) for item in value)
        case True:
            return "yes"
        case False:
            return "no"
        case None | "" | [] | {}:
            return "–"
        case _:
            return value


class BoundedPaginator(Paginator):
    """Counts no further than anybody pages: a full count of a large table is slower than the page itself."""

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list[:COUNTED_UP_TO]
        return int(rows.count())


class Watched:
    """Pages that show personal data, each showing of which is an audit entry: what `PERSONAL` of the model names, or
    where `shows_personal` says so, on a row's page or on the list."""

    shows_personal: ClassVar[tuple[str, ...] | None] = None  # of "page" and "list"

    def _shows(self, what: str) -> bool:
        if self.shows_personal is None:
            return bool(getattr(self.model, "PERSONAL", ()))  # type: ignore[attr-defined]
        return what in self.shows_personal

    def saw(self, request: HttpRequest, response: Any, object_id: str | None = None) -> Any:
        """Return the answer, after writing whose data it shows."""
        if request.method != "GET" or response.status_code != 200:
            return response
        by, at = self.admin_site.actor_of(request), timezone.now()  # type: ignore[attr-defined]
        if object_id is not None:
            row = self.get_object(request, unquote(object_id)) if self._shows("page") else None  # type: ignore[attr-defined]
            if row is not None:
                audit.saw(row=row, by=by, at=at)
        elif self._shows("list") and "cl" in getattr(response, "context_data", {}):
            audit.saw_list(rows=list(response.context_data["cl"].result_list), by=by, at=at)
        return response

    def change_view(self, request: HttpRequest, object_id: str, *more: Any, **options: Any) -> Any:
        return self.saw(request, super().change_view(request, object_id, *more, **options), object_id)  # type: ignore[misc]

    def changelist_view(self, request: HttpRequest, *more: Any, **options: Any) -> Any:
        return self.saw(request, super().changelist_view(request, *more, **options))  # type: ignore[misc]


class StaffModelAdmin(Watched, theme.ModelAdmin):
    """See the module."""

    acts: ClassVar[tuple[Act, ...]] = ()
    adds: ClassVar[tuple[str, ...]] = ()
    edits: ClassVar[tuple[str, ...]] = ()
    add_form: ClassVar[type[forms.ModelForm] | None] = None
    add_permission: ClassVar[str] = ""
    edit_permission: ClassVar[str] = ""
    uuid_fields: ClassVar[tuple[str, ...]] = ()
    tells: ClassVar[dict[str, Callable[[Any], Any]]] = {}  # what a person reads in the place of these fields

    form = RowForm
    actions = None
    paginator = BoundedPaginator
    show_full_result_count = False
    show_facets = ShowFacets.NEVER  # a count for each choice of each filter reads the whole table
    list_per_page = 50
    list_max_show_all = 0
    change_form_template = "admin/staff/change_form.html"
    compressed_fields = True
    save_as = False

    def __init__(self, model: type[models.Model], admin_site: Any) -> None:
        super().__init__(model, admin_site)
        self._told = {
            field.name: _teller(field)
            for field in model._meta.concrete_fields
            if isinstance(field, models.JSONField | models.DurationField | models.DateTimeField | models.DecimalField)
        } | self.tells

    @classmethod
    def offer(cls, *acts: Act) -> None:
        """Add acts whose rules are another app's: one above, which this app does not know."""
        cls.acts = (*cls.acts, *acts)

    # --- who may what ---

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(self.adds) and request.user.has_perm(self.add_permission or self._standard("add"))

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if not self.edits or (obj is not None and not self.editable(obj)):
            return False
        return request.user.has_perm(self.edit_permission or self._standard("change"))

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.has_perm(self._standard("view"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def editable(self, row: Any) -> bool:
        """Say whether this row, as it is now, can be changed by a form at all."""
        return True

    def by(self, request: HttpRequest) -> Actor:
        """Return who is acting: the site knows its people, this app does not."""
        return self.admin_site.actor_of(request)

    def _standard(self, verb: str) -> str:
        return f"{self.opts.app_label}.{verb}_{self.opts.model_name}"

    # --- what is shown ---

    def shown(self) -> list[str]:
        """Return the fields a row's page shows: all but key material."""
        secret = getattr(self.model, "SECRET", ())
        return [
            field.name
            for field in self.model._meta.concrete_fields
            if field.name not in secret and not isinstance(field, models.BinaryField)
        ]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return [(None, {"fields": self.adds})]
        groups = self.fieldsets or [(None, {"fields": self.shown()})]
        changing = self._changing(request, obj)
        return [
            (title, {**options, "fields": [self._field(name, changing) for name in options["fields"]]})
            for title, options in groups
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return ()
        changing = self._changing(request, obj)
        return [name for name in flatten_fieldsets(self.get_fieldsets(request, obj)) if name not in changing]

    def get_list_display(self, request: HttpRequest) -> Any:
        return [self._told.get(name, name) for name in super().get_list_display(request)]

    def get_changelist(self, request: HttpRequest, **options: Any) -> Any:
        return _StaffList

    def _changing(self, request: HttpRequest, obj: Any) -> Sequence[str]:
        return self.edits if self.has_change_permission(request, obj) else ()

    def _field(self, name: str, changing: Sequence[str]) -> Any:
        return name if name in changing else self._told.get(name, name)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        found = as_uuid(search_term)
        if found is None:
            return super().get_search_results(request, queryset, search_term)
        condition = models.Q(pk=found)
        for name in self.uuid_fields:
            condition |= models.Q(**{name: found})
        return queryset.filter(condition), False

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if isinstance(db_field, models.DurationField):
            return SpanField(required=not db_field.blank, help_text=db_field.help_text)
        return super().formfield_for_dbfield(db_field, request, **options)

    # --- forms, through a rule ---

    def rule_add(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        """Call the rule that makes a row; return the row."""
        raise NotImplementedError

    def rule_change(self, request: HttpRequest, form: Any, formsets: list[Any], at: datetime) -> Any:
        """Call the rule that changes the row `form.instance` names."""
        raise NotImplementedError

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **options: Any) -> Any:
        if obj is None and self.add_form is not None:
            options.setdefault("form", self.add_form)
        form = super().get_form(request, obj, change=change, **options)
        error = getattr(request, "refusal", None)
        return type(form)(form.__name__, (_Refusing, form), {"refusal": error}) if error else form

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> Any:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except LicensingError as error:
            # Its transaction is rolled back. Once more, with the rule's answer among the form's errors.
            request.refusal = error  # type: ignore[attr-defined]
            return super().changeform_view(request, object_id, form_url, extra_context)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write nothing: `save_related` calls the rule, when formsets are known too."""

    def save_related(self, request: HttpRequest, form: Any, formsets: Iterable[Any], change: bool) -> None:
        rule = self.rule_change if change else self.rule_add
        made = rule(request, form, list(formsets), timezone.now())
        if made is not None:
            form.instance.pk = made.pk
        form.instance.refresh_from_db()

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **options: Any) -> Any:
        context |= {"show_save_and_add_another": False, "show_save_and_continue": bool(options.get("change"))}
        return super().render_change_form(request, context, *args, **options)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        return []

    def log_addition(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Write no second log: the rule wrote its audit entry."""

    def log_change(self, request: HttpRequest, obj: Any, message: Any) -> None:
        """Write no second log: the rule wrote its audit entry."""

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        raise PermissionDenied

    # --- acts ---

    def get_urls(self) -> list[Any]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_act"
        view = self.admin_site.admin_view(self.act_view)
        return [path("<path:object_id>/act/<slug:act_name>/", view, name=name), *super().get_urls()]

    def may(self, request: HttpRequest, act: Act) -> bool:
        """Say whether this person may do this act."""
        return self.has_view_permission(request) and request.user.has_perm(act.permission)

    def buttons(self, request: HttpRequest, row: Any, at: datetime) -> list[dict[str, Any]]:
        """Return the acts this person may do to this row as it is now."""
        acts = [act for act in self.acts if self.may(request, act) and act.offered(row, at)]
        return [
            {"label": act.label, "url": self.act_url(row, act.name), "danger": act.danger, "group": act.group}
            for act in sorted(acts, key=lambda act: (bool(act.group), bool(act.group) and act.danger))
        ]

    def act_url(self, row: Any, name: str) -> str:
        """Return the address of an act's page."""
        return reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_act", args=[row.pk, name])

    def act_facts(self, row: Any, at: datetime) -> list[tuple[str, Any]]:
        """Return what a person must see of the row before they act on it."""
        return [(str(self.opts.verbose_name).capitalize(), str(row))]

    def act_view(self, request: HttpRequest, object_id: str, act_name: str) -> HttpResponse:
        """Show an act's page; on POST call its rule, say what was done and go back."""
        act = next((act for act in self.acts if act.name == act_name), None)
        if act is None:
            raise Http404
        if not self.may(request, act):
            raise PermissionDenied
        row = self.get_object(request, unquote(object_id))
        if row is None:
            raise Http404
        at = timezone.now()
        form = act.form(request.POST if request.method == "POST" else None, row=row, at=at)
        tables: list[dict[str, Any]] = []
        seen = ""
        if form.is_valid():
            given = {act.row_as: row, "by": self.by(request), "at": at, **form.arguments()}
            try:
                if act.preview is None or request.POST.get("seen") == _seen(row, form):
                    return self._answer(request, act, row, act.rule(**given))
                tables, seen = act.preview(**given), _seen(row, form)
            except LicensingError as error:
                form.refuse(error)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": act.label.rstrip("…"),
            "act": act,
            "facts": self.act_facts(row, at),
            "says": act.says(row, at),
            "form": form,
            "previews": act.preview is not None,
            "tables": tables,
            "seen": seen,
            "back": page_of(row),
            "original": row,
        }
        page = TemplateResponse(request, "admin/staff/act.html", context, status=422 if form.errors else 200)
        return self.saw(request, page, object_id)

    def _answer(self, request: HttpRequest, act: Act, row: Any, result: Any) -> HttpResponse:
        after = act.goes_to(row, result) if act.goes_to else row
        back = after if isinstance(after, str) else page_of(after)
        if act.secret is not None:
            return self.show_secret(request, act.done, act.secret(result), back)
        messages.success(request, act.done)
        return HttpResponseRedirect(back)

    def show_secret(self, request: HttpRequest, title: str, secret: str, back: str) -> HttpResponse:
        """Return the page that shows a key or secret once: in this answer, and nowhere else."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": title,
            "secret": secret,
            "back": back,
        }
        return TemplateResponse(
            request, "admin/staff/secret.html", context, headers={"Cache-Control": "no-store, private"}
        )

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, unquote(object_id)) if request.method == "GET" else None
        if row is not None and self.has_view_permission(request, row):
            at = timezone.now()
            self.opened(request, row, at)
            extra_context = {
                **self.panels(request, row, at),
                "buttons": self.buttons(request, row, at),
                **(extra_context or {}),
            }
        return super().change_view(request, object_id, form_url, extra_context)

    def opened(self, request: HttpRequest, row: Any, at: datetime) -> None:
        """Note which customer's page one of us opened, for the rule about misuse by staff."""
        customer_id = row.pk if isinstance(row, Customer) else getattr(row, "customer_id", None)
        if customer_id is not None:
            observations.note("opened", self.by(request).id, str(customer_id), at)

    def panels(self, request: HttpRequest, row: Any, at: datetime) -> dict[str, Any]:
        """Return what a row's page shows besides its fields."""
        return {}

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Show a model without history by what the audit record says of the row."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(list_of(AuditEntry, object_kind=self.opts.model_name, object_id=unquote(object_id)))


class StaffHistoryAdmin(SimpleHistoryAdmin, StaffModelAdmin):
    """A model with history: staff see what a row was, and cannot put it back behind the rules' back."""

    history_list_per_page = 50

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write nothing, as the base."""

    def revert_disabled(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def history_form_view(
        self, request: HttpRequest, object_id: str, version_id: str, extra_context: Any = None
    ) -> HttpResponse:
        if request.method != "GET":
            raise PermissionDenied
        return super().history_form_view(request, object_id, version_id, extra_context)


def _seen(row: Any, form: forms.Form) -> str:
    """Return what says that these inputs, for the row as it is, were previewed: otherwise they are shown again."""
    said_now = {name: str(form.cleaned_data.get(name)) for name in form.fields}
    return hashlib.sha256(f"{row.pk} {getattr(row, 'revision', '')} {said_now}".encode()).hexdigest()


class _StaffList(theme.ChangeList):
    """A list that offers to show all only where something is left out."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.query and not self.has_active_filters:
            self.full_result_count = self.result_count


class _Refusing:
    """A form that holds what a rule said of it."""

    refusal: LicensingError

    def clean(self) -> Any:
        cleaned = super().clean()  # type: ignore[misc]
        show(self, self.refusal)  # type: ignore[arg-type]
        return cleaned


def _teller(field: Any) -> Callable[[Any], Any]:
    def tell(row: Any) -> Any:
        return told(getattr(row, field.name))

    tell.short_description = field.verbose_name  # type: ignore[attr-defined]
    tell.admin_order_field = field.name  # type: ignore[attr-defined]
    tell.__name__ = field.name
    return tell
