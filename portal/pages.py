"""The URLs of the customer's pages. They come before allauth's, and close those of its pages we do not offer."""

from django.urls import path, re_path

from portal import views

app_name = "portal"
urlpatterns = [
    path("", views.licenses, name="licenses"),
    path("licenses/", views.home),
    path("licenses/<uuid:license_id>/", views.license, name="license"),
    path("licenses/<uuid:license_id>/seats/", views.assign_seat, name="assign-seat"),
    path("licenses/<uuid:license_id>/offline/", views.activate_offline, name="activate-offline"),
    path("licenses/<uuid:license_id>/key/", views.download_key, name="download-key"),
    path("seats/<uuid:seat_id>/release/", views.release_seat, name="release-seat"),
    path("seats/<uuid:seat_id>/transfer/", views.transfer_seat, name="transfer-seat"),
    path("leases/<uuid:lease_id>/end/", views.end_lease, name="end-lease"),
    path("accounts/", views.home),
    # An address is changed by staff: it names the person in the audit record.
    re_path(r"^accounts/(?:email|confirm-email|login/code)/", views.closed),
]
