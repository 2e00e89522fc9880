"""Every URL."""

from django.contrib import admin
from django.urls import include, path
from django.views.decorators.cache import cache_page
from drf_spectacular.views import SpectacularAPIView

from portal import api, health, webhooks

urlpatterns = [
    path("", include("portal.pages", namespace="portal")),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
    path("api/v1/", include("licensing.api.urls")),
    path("api/v1/", include("billing.api.urls")),
    path("api/v1/schema", cache_page(300)(SpectacularAPIView.as_view()), name="schema"),
    path("api/docs", api.docs, name="api-docs"),
    path(".well-known/jwks.json", api.jwks, name="jwks"),
    path("webhooks/stripe", webhooks.stripe, name="stripe-webhook"),
    path("health/live", health.live, name="live"),
    path("health/ready", health.ready, name="ready"),
    path("metrics", health.metrics, name="metrics"),
]
