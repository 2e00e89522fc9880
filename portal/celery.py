"""The Celery app. The beat schedule stands in settings, each job beside its rules in an app's `tasks`."""

import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

app = Celery("licentia")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
@beat_init.connect
def _refuse_to_start_unguarded(**_: Any) -> None:
    from portal import checks

    checks.refuse_to_start_unguarded()
    checks.begin()
