"""The only importer of the admin theme here: with another theme, or none, this is what changes."""

from unfold.admin import ModelAdmin, TabularInline
from unfold.decorators import display
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget as Checkboxes
from unfold.widgets import UnfoldAdminEmailInputWidget as EmailInput
from unfold.widgets import UnfoldAdminIntegerFieldWidget as NumberInput
from unfold.widgets import UnfoldAdminSelectWidget as Select
from unfold.widgets import UnfoldAdminSplitDateTimeWidget as DateTimeInput
from unfold.widgets import UnfoldAdminTextareaWidget as Textarea
from unfold.widgets import UnfoldAdminTextInputWidget as TextInput

__all__ = [
    "ChangeList",
    "Checkboxes",
    "DateTimeInput",
    "EmailInput",
    "ModelAdmin",
    "NumberInput",
    "Select",
    "TabularInline",
    "TextInput",
    "Textarea",
    "display",
]
