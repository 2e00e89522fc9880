"""Who is signing in, as the lockout counts failures. It checks no password: that is Django's and allauth's."""

from typing import Any

from django.http import HttpRequest


def name_of(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str:
    """Return the address a person tries to sign in with, in one spelling.

    The staff site calls it `username`, the portal `email` (`login` in its form). Asked for the staff site's name
    only, the lockout would count everybody behind one address as one person.
    """
    given = credentials or {}
    name = given.get("username") or given.get("email") or ""
    if not name and not given:
        name = request.POST.get("username") or request.POST.get("login") or ""
    return str(name).strip().lower()
