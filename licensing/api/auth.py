"""DRF's hooks for who calls and what they may: both ask the gate."""

from typing import Any

from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from licensing import gate
from licensing.api.door import plain_request
from licensing.credentials import Caller


class CredentialAuthentication(BaseAuthentication):
    """Who calls: an API credential or the holder of a license key. Refuses everybody else."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        caller, allowed = gate.identify(plain_request(request._request), timezone.now())
        request._request.allowed = allowed  # type: ignore[attr-defined]
        return caller, None


class HasScope(BasePermission):
    """The caller holds the scope that the view names for this method: `read_scope` or `write_scope`."""

    def has_permission(self, request: Request, view: Any) -> bool:
        scope = view.read_scope if request.method in ("GET", "HEAD", "OPTIONS") else view.write_scope
        caller: Any = request.user
        return scope in caller.scopes


class _Document(OpenApiAuthenticationExtension):
    target_class = CredentialAuthentication
    name = ["credential", "licenseKey"]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        return [
            {"type": "http", "scheme": "bearer", "description": "An API credential: `Bearer lsk_…`"},
            {
                "type": "apiKey",
                "in": "header",
                "name": "Authorization",
                "description": "A license key: `License LIC1-…`, together with `x-licentia-nonce`",
            },
        ]
