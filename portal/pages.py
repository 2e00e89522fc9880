"""The URLs of the customer's pages. They come before allauth's, and close those of its pages we do not offer."""

from django.urls import path, re_path

from portal import hook_views, views

app_name = "portal"
urlpatterns = [
    path("", views.licenses, name="licenses"),
    path("licenses/", views.home),
    path("licenses/<uuid:license_id>/", views.license, name="license"),
    path("licenses/<uuid:license_id>/seats/", views.assign_seat, name="assign-seat"),
    path("licenses/<uuid:license_id>/offline/", views.activate_offline, name="activate-offline"),
    path("licenses/<uuid:license_id>/usage/", views.usage_of_license, name="usage"),
    path("licenses/<uuid:license_id>/key/", views.download_key, name="download-key"),
    path("seats/<uuid:seat_id>/release/", views.release_seat, name="release-seat"),
    path("seats/<uuid:seat_id>/transfer/", views.transfer_seat, name="transfer-seat"),
    path("machines/<uuid:activation_id>/let-go/", views.let_go, name="let-go"),
    path("leases/<uuid:lease_id>/end/", views.end_lease, name="end-lease"),
    path("statements/", views.statements, name="statements"),
    path("statements/<uuid:statement_id>/", views.statement, name="statement"),
    path("statements/<uuid:statement_id>/statement.<slug:form>", views.statement_file, name="statement-file"),
    path("webhooks/", hook_views.endpoints, name="webhooks"),
    path("webhooks/<uuid:endpoint_id>/", hook_views.endpoint, name="webhook"),
    path("webhooks/<uuid:endpoint_id>/change/", hook_views.change, name="change-webhook"),
    path("webhooks/<uuid:endpoint_id>/test/", hook_views.test, name="test-webhook"),
    path("webhooks/<uuid:endpoint_id>/messages/<uuid:message_id>/", hook_views.replay, name="replay-webhook"),
    path("webhooks/<uuid:endpoint_id>/<slug:name>/", hook_views.act, name="webhook-act"),
    path("accounts/", views.home),
    # An address is changed by staff: it names the person in the audit record.
    re_path(r"^accounts/(?:email|confirm-email|login/code)/", views.closed),
]
