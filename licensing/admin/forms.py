"""The forms of staff acts, and the fields our forms share. A form's fields are named as its rule's arguments."""

import re
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.db import models

from licensing.admin import theme
from licensing.errors import Invalid, LicensingError

_UNITS = {"minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
_PART = re.compile(r"(\d{1,7})\s*(minutes?|hours?|days?|weeks?|)\s*,?\s*", re.IGNORECASE)


def said(span: timedelta) -> str:
    """Return a time span in the words `SpanField` reads."""
    rest, parts = int(span.total_seconds()), []
    for unit in ("day", "hour", "minute"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count} {unit}{'' if count == 1 else 's'}")
    return " ".join(parts) or "0 days"


class SpanField(forms.CharField):
    """A time span as a person writes it: `30`, `30 days`, `2 weeks`, `1 day 12 hours`. A bare number is days."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("widget", theme.TextInput(attrs={"placeholder": "e.g. 30 days"}))
        super().__init__(**options)

    def prepare_value(self, value: Any) -> Any:
        return said(value) if isinstance(value, timedelta) else value

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if not text:
            return None
        seconds, position = 0, 0
        while position < len(text):
            part = _PART.match(text, position)
            if part is None:
                raise forms.ValidationError("Write a time span as '30 days', '2 weeks' or '1 day 12 hours'.")
            seconds += int(part[1]) * _UNITS[(part[2] or "day").lower().rstrip("s")]
            position = part.end()
        if seconds > 100 * 365 * 86_400:
            raise forms.ValidationError("That is more than a hundred years.")
        return timedelta(seconds=seconds)

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(super().has_changed(self.prepare_value(initial), data))


class CodeField(forms.ModelChoiceField):
    """A row named by its code: a plain text input, which needs no script and no list of all rows."""

    def __init__(self, queryset: models.QuerySet[Any], **options: Any) -> None:
        options.setdefault("widget", theme.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}))
        super().__init__(queryset, to_field_name="code", **options)
        self.error_messages["invalid_choice"] = "There is nothing with this code."

    def to_python(self, value: Any) -> Any:
        return super().to_python(value.strip().lower() if isinstance(value, str) else value)


class RowForm(forms.ModelForm):
    """A form of a row. What must hold between its fields the rule says in words; a constraint only has a name."""

    def _post_clean(self) -> None:
        # Django has no switch for it: a form's clean asks the instance for its constraints.
        vars(self.instance)["validate_constraints"] = lambda exclude=None: None
        try:
            super()._post_clean()  # type: ignore[misc]
        finally:
            del vars(self.instance)["validate_constraints"]


class ActForm(forms.Form):
    """The inputs of an act, besides the row it is done to."""

    def __init__(self, *args: Any, row: Any, at: datetime, **options: Any) -> None:
        super().__init__(*args, **options)
        self.row, self.at = row, at

    def arguments(self) -> dict[str, Any]:
        """Return what the rule function is given."""
        return dict(self.cleaned_data)

    def refuse(self, error: LicensingError) -> None:
        """Show a rule's refusal, beside the field it is about when it says which."""
        show(self, error)


def show(form: forms.BaseForm, error: LicensingError) -> None:
    """Add what a rule said to a form's errors: beside the field it points at, saying where in it."""
    first, *rest = error.pointer.strip("/").split("/") if isinstance(error, Invalid) else [""]
    if first not in form.fields:
        form.add_error(None, error.detail)
        return
    place = ", ".join(f"no. {int(each) + 1}" if each.isdigit() else each.replace("_", " ") for each in rest)
    form.add_error(first, f"{place.capitalize()}: {error.detail}" if place else error.detail)


def why(**options: Any) -> forms.CharField:
    """Return the field that asks why."""
    defaults: dict[str, Any] = {
        "widget": theme.Textarea(attrs={"rows": 3}),
        "max_length": 2000,
        "help_text": "Kept in the audit record. No personal data, no keys.",
    }
    return forms.CharField(**defaults | options)


class ReasonForm(ActForm):
    """An act that only needs to say why."""

    reason = why()


class OptionalReasonForm(ActForm):
    """An act that may say why."""

    reason = why(required=False)


class NoInputs(ActForm):
    """An act that needs nothing but a confirmation."""
