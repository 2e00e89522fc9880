"""The Celery app. The beat schedule stands in settings, each job beside its rules in an app's `tasks`."""

import os
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_init, worker_process_shutdown

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

app = Celery("licentia")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@worker_init.connect
def _begin_worker(**_: Any) -> None:
    _begin("worker")


@beat_init.connect
def _begin_beat(**_: Any) -> None:
    _begin("beat")


def _begin(kind: str) -> None:
    """Refuse to start unguarded; be noticed from now on."""
    from django.conf import settings

    from portal import checks, clock, presence

    checks.refuse_to_start_unguarded()
    checks.begin()
    presence.begin(kind, settings.VAR_DIR / "running")
    clock.watching.wake()


@worker_init.connect
def _watch_jobs(**_: Any) -> None:
    """Notice a beat that is gone, also where no web server runs."""
    from licensing import sweeps

    sweeps.looking.wake()


@worker_process_shutdown.connect
def _lose_nothing(**_: Any) -> None:
    """A process of the pool ends without the finalizers that others run."""
    from licensing import background

    background.stop()
