"""The product's URLs, and what it is measured against."""

from django.urls import include, path

from benchmarks import twins

urlpatterns = [
    path("bench/bare", twins.bare),
    path("bench/twin", twins.Twin.as_view()),
    path("", include("portal.urls")),
]
