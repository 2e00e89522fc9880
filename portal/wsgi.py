"""The WSGI entry: Django, started only when its database guards stand."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

application = get_wsgi_application()

from portal import checks  # noqa: E402  needs the apps loaded

checks.refuse_to_start_unguarded()
