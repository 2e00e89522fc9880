"""The API's URLs of this app, below /api/v1/."""

from typing import Any

from django.urls import path
from rest_framework.routers import SimpleRouter

from billing.api import catalog, changes, credit, statements, usage

router = SimpleRouter(trailing_slash=False, use_regex_path=False)
router.register("reservations", usage.ReservationViews)
router.register("usage/corrections", usage.CorrectionViews, basename="correction")
router.register("credit-grants", credit.CreditGrantViews)
router.register("meters", catalog.MeterViews)
router.register("meters/<uuid:meter_id>/revisions", catalog.MeterRevisionViews, basename="meter-revision")
router.register("prices", catalog.PriceViews)
router.register("prices/<uuid:price_id>/revisions", catalog.PriceRevisionViews, basename="price-revision")
router.register("statements", statements.StatementViews)
router.register("billing-accounts", statements.BillingAccountViews)


def _of_license(action: str, method: str = "post") -> Any:
    return path(
        f"licenses/<uuid:pk>/{action.replace('_', '-')}",
        changes.LicenseChangeViews.as_view({method: action}),
        name=f"license-{action.replace('_', '-')}",
    )


urlpatterns = [
    path("usage", usage.count, name="usage"),
    path("usage/batch", usage.count_batch, name="usage-batch"),
    path("events", usage.count_events, name="events"),
    *router.urls,
    _of_license("change_plan"),
    _of_license("change_scheme"),
    _of_license("undo_change"),
    _of_license("changes", "get"),
]
