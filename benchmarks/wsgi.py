"""One WSGI server for all that is measured: the product with its middleware, the bare view without any, the twin
behind Django's default stack."""

import os
from collections.abc import Callable, Iterable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")

from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

from portal.wsgi import application as product
from portal.wsgi import django

# A handler reads its middleware once, when it is made.
with override_settings(MIDDLEWARE=[]):
    bare = WSGIHandler()
with override_settings(
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
):
    twin = WSGIHandler()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve a request by the handler its path belongs to."""
    path = environ["PATH_INFO"]
    if path == "/bench/bare":
        return bare(environ, start_response)
    if path == "/bench/twin":
        return twin(environ, start_response)
    if "HTTP_X_BENCH_DJANGO" in environ:  # by Django's own door, past the fast one
        return django(environ, start_response)
    return product(environ, start_response)
