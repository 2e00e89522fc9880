"""The WSGI entry: the fast door for what client programs ask all day, and Django for the rest.

Nothing is started unless the database guards stand and answers can be signed.
"""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

django = get_wsgi_application()

from licensing import nonces  # noqa: E402  needs the apps loaded
from portal import checks  # noqa: E402
from portal.door import fast_door  # noqa: E402

application = fast_door(django)

checks.refuse_to_start_unguarded()
checks.begin()
nonces.prepare()
