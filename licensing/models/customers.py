"""Who buys: customers, and the members who act for them in the portal."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from licensing.models.base import Row, history
from licensing.states import MemberRole


class Customer(Row):
    """The organization that buys. Every row of a customer hangs from here."""

    PERSONAL = ("email",)

    code = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=200)
    email = models.EmailField(blank=True, help_text="Where notices about licenses go, besides the members.")

    history = history(leaving_out=PERSONAL)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Member(Row):
    """A person who may act for a customer, in one role."""

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="members")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=32, choices=MemberRole)

    history = history()

    class Meta:
        ordering = ["customer", "created_at"]
        constraints = [
            models.UniqueConstraint(fields=["customer", "user"], name="user_is_member_of_a_customer_once"),
            models.CheckConstraint(condition=Q(role__in=MemberRole.values), name="member_role_is_known"),
        ]

    def __str__(self) -> str:
        return f"{self.get_role_display()} of {self.customer_id}"
