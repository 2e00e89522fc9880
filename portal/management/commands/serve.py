"""`manage.py serve`: become the production-shaped web server.

The same server stands behind the demo, `make run` and the container. It neither migrates nor collects
static files, and it never reloads: for that there is Django's `runserver`.
"""

import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.checks import ERROR
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from portal import checks

# One thread at a time runs Python; the others wait for a database or a cache.
DEFAULT_THREADS = 4


def command(*, host: str, port: int, workers: int | None = None, threads: int | None = None) -> list[str]:
    """Return the command line of the web server; what is not given comes from WEB_WORKERS and WEB_THREADS."""
    if workers is None:
        # Without Redis the nonces and throttles live in the process, and a second one would not see them.
        usual = (os.cpu_count() or 1) if settings.REDIS_URL else 1
        workers = int(os.environ.get("WEB_WORKERS") or usual)
    if threads is None:
        threads = int(os.environ.get("WEB_THREADS") or DEFAULT_THREADS)
    return [
        *(sys.executable, "-m", "granian", "portal.wsgi:application"),
        *("--interface", "wsgi", "--no-ws"),
        *("--host", host, "--port", str(port)),
        *("--workers", str(workers), "--blocking-threads", str(threads)),
        *("--respawn-failed-workers", "--workers-kill-timeout", "30"),
        *("--log-level", "warning"),
    ]


class Command(BaseCommand):
    help = "Serve the site and the API (granian, WSGI), as in production."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
        parser.add_argument("--port", type=int, default=int(os.environ.get("PORT") or 8000))
        parser.add_argument("--workers", type=int, help="processes (default: WEB_WORKERS, else one a core)")
        parser.add_argument("--threads", type=int, help="threads a process (default: WEB_THREADS, else 4)")

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.PRODUCTION:
            self.check(include_deployment_checks=True, fail_level=ERROR)
        # The workers ask this too, but can only die of it, again and again.
        try:
            checks.refuse_to_start_unguarded()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        line = command(
            host=options["host"], port=options["port"], workers=options["workers"], threads=options["threads"]
        )
        self.stdout.write(f"Serving {settings.PUBLIC_URL} on http://{options['host']}:{options['port']} …")
        self.stdout.flush()
        os.environ.setdefault("WEB_OWN_CORE", "1")
        # The server takes this process over, so that signals and the container's init reach it directly.
        os.chdir(settings.BASE_DIR)
        os.execv(line[0], line)  # noqa: S606
