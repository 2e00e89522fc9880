"""The portal app: composition, the customer's browser, the staff site."""

from django.apps import AppConfig


class PortalConfig(AppConfig):
    name = "portal"
    verbose_name = "People"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from licensing import rules
        from licensing.states import Severity
        from portal import checks  # noqa: F401  registers the system checks

        rules.register(
            rules.Rule(
                "webhook_forged",
                "Somebody sent what claims to come from the payment gateway and is not signed by it.",
                Severity.HIGH,
                "why it was refused",
                proved_by=("tests/pages/test_stripe_webhook.py",),
            )
        )
