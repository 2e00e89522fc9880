"""The forms of the customer's pages: what may be typed, and where a rule's answer is shown.

They check shape only. Whether something is allowed is said by the rule, and `blame` puts its words beside the
field they are about.
"""

from typing import Any

import structlog
from django import forms

from licensing import events, license_files, posting
from licensing.errors import Forbidden, Invalid, LicensingError, Missing, Refused, TooMany
from licensing.states import LicenseStatus, SeatState
from portal.usage import SPANS

log = structlog.get_logger(__name__)

STATUSES = [(status.value, status.label.capitalize()) for status in LicenseStatus if status != LicenseStatus.DRAFT]
SEAT_STATES = [(state.value, state.label.capitalize()) for state in SeatState]


class RuleForm(forms.Form):
    """A form whose change is made by a rule."""

    # Where an error with this pointer belongs; what is not named here stands above the fields.
    fields_of: dict[str, str] = {}

    def blame(self, error: LicensingError) -> None:
        """Show why the rule refused, in its own words; a fault of ours is logged and named as one."""
        if isinstance(error, Refused | Invalid | Missing | Forbidden | TooMany):
            pointer = getattr(error, "pointer", "")
            self.add_error(self.fields_of.get(pointer), error.detail)
        else:
            log.error("page_rule_failed", code=error.code, detail=error.detail)
            self.add_error(None, "This does not work right now, and nothing was changed. Please tell the vendor.")

    def focus_on_error(self) -> None:
        """Have the browser go to the first field that needs another look, even far down a page."""
        name = next((name for name in self.errors if name in self.fields), next(iter(self.fields)))
        self.fields[name].widget.attrs["autofocus"] = True


def _email(**attrs: Any) -> forms.EmailInput:
    return forms.EmailInput({"autocomplete": "off", "spellcheck": "false", "placeholder": "name@example.com"} | attrs)


def _reason(*, required: bool) -> forms.CharField:
    return forms.CharField(
        label="Reason" if required else "Reason (optional)", required=required, max_length=200, strip=True
    )


class LicenseFilter(forms.Form):
    """Which licenses to list. What does not fit is as if it had not been asked."""

    status = forms.ChoiceField(required=False, choices=[("", "Any status"), *STATUSES])
    product = forms.ChoiceField(required=False)

    def __init__(self, *args: Any, products: list[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["product"] = forms.ChoiceField(required=False, choices=[("", "Any product"), *products])

    def value(self, name: str) -> str:
        self.is_valid()
        return str(self.cleaned_data.get(name, ""))


class SeatFilter(forms.Form):
    """Which seats of a license to list. What does not fit is as if it had not been asked."""

    q = forms.CharField(
        label="Find a holder",
        required=False,
        max_length=254,
        widget=forms.TextInput({"type": "search", "autocomplete": "off", "spellcheck": "false"}),
    )
    state = forms.ChoiceField(required=False, choices=[("", "In use"), *SEAT_STATES])

    def value(self, name: str) -> str:
        self.is_valid()
        return str(self.cleaned_data.get(name, ""))


class UsageFilter(forms.Form):
    """Which history to show. What does not fit is as if it had not been asked."""

    meter = forms.ChoiceField(required=False)
    days = forms.ChoiceField(label="Time", required=False, choices=[(str(n), f"Last {n} days") for n in SPANS])
    by = forms.ChoiceField(label="Apart by", required=False)

    def __init__(self, *args: Any, meters: list[tuple[str, str]], dimensions: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["meter"] = forms.ChoiceField(required=False, choices=meters)
        apart = [(each, each.replace("_", " ").capitalize()) for each in dimensions]
        self.fields["by"] = forms.ChoiceField(label="Apart by", required=False, choices=[("", "All together"), *apart])
        if len(meters) < 2:
            del self.fields["meter"]
        if not dimensions:
            del self.fields["by"]

    def value(self, name: str) -> str:
        self.is_valid()
        return str(self.cleaned_data.get(name, ""))


class AssignForm(RuleForm):
    """Give somebody a seat."""

    fields_of = {"/holder": "holder"}
    holder = forms.CharField(label="Email address of the person", max_length=254, widget=_email())


class ReasonForm(RuleForm):
    """Take something back: a seat, a lease, a machine's place."""

    reason = _reason(required=False)


class TransferForm(ReasonForm):
    """Hand a seat to somebody else."""

    fields_of = {"/holder": "to"}
    field_order = ("to", "reason")
    to = forms.CharField(label="Email address of the new holder", max_length=254, widget=_email())


class OfflineForm(RuleForm):
    """The request file of a machine without a network: as a file, or its text."""

    fields_of = {"/request": "request", "/holder": "seat_holder"}
    upload = forms.FileField(
        label="Request file",
        required=False,
        allow_empty_file=True,
        help_text="The file that the program wrote on the machine.",
        widget=forms.FileInput({"accept": ".req,.txt,.pem,text/plain"}),
    )
    request = forms.CharField(
        label="Or paste its text",
        required=False,
        max_length=license_files.LONGEST_REQUEST,
        widget=forms.Textarea({"rows": 8, "spellcheck": "false", "autocomplete": "off", "class": "code"}),
    )
    seat_holder = forms.CharField(
        label="Email address of the person with the seat", max_length=254, required=False, widget=_email()
    )

    def __init__(self, *args: Any, named: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not named:
            del self.fields["seat_holder"]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        upload, text = cleaned.get("upload"), cleaned.get("request", "")
        if upload is not None:
            self.fields_of = {**self.fields_of, "/request": "upload"}
            text = upload.read(license_files.LONGEST_REQUEST + 1).decode("ascii", errors="replace")
            if len(text) > license_files.LONGEST_REQUEST:
                self.add_error("upload", "That is no request file: it is far too large.")
        if not text.strip() and not self.errors:
            self.add_error("upload", "Choose the request file, or paste its text below.")
        # A browser leaves line ends of its own; nothing else of the text may differ.
        cleaned["request"] = text.strip() + "\n"
        return cleaned


class RevealForm(RuleForm):
    """Download a license key."""

    reason = _reason(required=True)


class EndpointForm(RuleForm):
    """A webhook endpoint: where to, and of what."""

    fields_of = {"/url": "url", "/event_types": "event_types"}
    customer = forms.ChoiceField(label="Organization")
    url = forms.CharField(
        label="Address",
        max_length=posting.LONGEST_URL,
        widget=forms.URLInput({"autocomplete": "off", "spellcheck": "false", "placeholder": "https://"}),
    )
    description = forms.CharField(label="Description (optional)", required=False, max_length=200)
    event_types = forms.MultipleChoiceField(
        label="Event types",
        required=False,
        choices=[(event_type, event_type) for event_type in events.FOR_CUSTOMERS],
        widget=forms.SelectMultiple({"size": 8}),
        help_text="None chosen: every type.",
    )

    def __init__(self, *args: Any, customers: list[tuple[str, str]] = (), **kwargs: Any) -> None:  # type: ignore[assignment]
        super().__init__(*args, **kwargs)
        self.fields["customer"] = forms.ChoiceField(label="Organization", choices=customers)
        if len(customers) < 2:
            del self.fields["customer"]


class AgainForm(RuleForm):
    """Send a message again."""

    fields_of = {"/reason": "reason"}
    reason = _reason(required=True)
