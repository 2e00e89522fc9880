"""What every row has: a UUIDv7 made before the insert, and which of its fields are not for eyes.

`PERSONAL` names fields that hold personal data, `SECRET` those that hold key material in any form. History
tables leave out both (see `history`), and a test walks all models to hold that.
"""

from typing import Any, ClassVar

from django.db import models
from simple_history.models import HistoricalRecords

from licensing.ids import uuid7


class Row(models.Model):
    """The base of all our rows."""

    PERSONAL: ClassVar[tuple[str, ...]] = ()
    SECRET: ClassVar[tuple[str, ...]] = ()

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    created_at = models.DateTimeField(editable=False)

    class Meta:
        abstract = True


def history(*, leaving_out: tuple[str, ...] = ()) -> Any:
    """Return simple-history for a model, without its personal and secret fields.

    History shows staff what a row was. It is not evidence: conditional updates pass it by; audit entries are.
    """
    return HistoricalRecords(
        excluded_fields=list(leaving_out),
        history_id_field=models.UUIDField(default=uuid7),
        history_change_reason_field=models.TextField(null=True),
    )
