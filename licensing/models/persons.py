"""The data keys of persons: what is said of a person in the audit record is sealed under theirs."""

from django.db import models
from django.db.models import Q

from licensing.models.base import Row


class Person(Row):
    """One person's data key, found by a keyed digest of their address. Erasing the person empties this row.

    `sealed` holds the key and the address; nothing else here says who it is. One address may have several rows:
    whoever first writes of a person does not wait for another who does. `user` is the id of their account, if it was
    one who acted, so that they are found after their address changed too.
    """

    SECRET = ("digest", "sealed")

    digest_kid = models.CharField(max_length=32, blank=True)
    digest = models.BinaryField(max_length=32, null=True, db_index=True)
    sealed = models.TextField(blank=True)
    user = models.CharField(max_length=64, blank=True, db_index=True)
    erased_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(
                condition=Q(erased_at=None, digest__isnull=False) & ~Q(sealed="")
                | Q(erased_at__isnull=False, digest=None, digest_kid="", sealed="", user=""),
                name="person_has_a_key_until_erased",
            )
        ]

    def __str__(self) -> str:
        return str(self.pk)
