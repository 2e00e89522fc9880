"""The staff admin site."""

from django.contrib.admin.apps import AdminConfig


class StaffAdminConfig(AdminConfig):
    """Makes our site the default one, so that every app's admin registers with it."""

    default_site = "portal.staff_site.StaffSite"
