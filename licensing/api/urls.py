"""The API's URLs of this app, below /api/v1/."""

from django.urls import path
from rest_framework.routers import SimpleRouter

from licensing.api import leases, views, webhooks

router = SimpleRouter(trailing_slash=False, use_regex_path=False)
router.register("products", views.ProductViews)
router.register("plans", views.PlanViews)
router.register("plan-revisions", views.PlanRevisionViews)
router.register("customers", views.CustomerViews)
router.register("members", views.MemberViews)
router.register("licenses", views.LicenseViews)
router.register("seats", views.SeatViews)
router.register("activations", views.ActivationViews)
router.register("leases", leases.LeaseViews)
router.register("license-files", leases.LicenseFileViews)
router.register("credentials", views.CredentialViews)
router.register("webhook-endpoints", webhooks.WebhookEndpointViews)
router.register("anomalies", views.AnomalyViews)
router.register("audit-entries", views.AuditEntryViews)

urlpatterns = [
    path("validate", views.validate, name="validate"),
    path("entitlements", views.EntitlementViews.as_view({"get": "show"}), name="entitlements"),
    *router.urls,
]
