"""The WSGI entry: the fast door for what client programs ask all day, and Django for the rest.

Nothing is started unless the database guards stand and answers can be signed.
"""

import gc
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

django = get_wsgi_application()

from licensing import nonces, sweeps  # noqa: E402  needs the apps loaded
from portal import checks, clock, cores, presence  # noqa: E402
from portal.door import fast_door  # noqa: E402

application = fast_door(django)

if settings.WEB_OWN_CORE:  # before there are threads
    cores.take_one(settings.VAR_DIR / "cores")
checks.refuse_to_start_unguarded()
checks.begin()
presence.begin("web", settings.VAR_DIR / "running")
clock.watching.wake()
nonces.prepare()
sweeps.looking.wake()

# What is there by now stays: the garbage collector need not look through it again and again while requests wait, nor
# through what is kept every seven hundred objects.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 10, 50)
