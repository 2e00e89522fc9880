"""What the validate endpoint is measured against.

`bare`: a Django view that does nothing. `Twin`: the endpoint as most would write it, with DRF, a serializer, the
ORM, a throttle and PyJWT, and the same answer. It is a fair twin: it decides the same, and signs its token too.
"""

import time
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.parsers import JSONParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import SimpleRateThrottle
from rest_framework.views import APIView

from licensing import crypto, keys, lifecycle
from licensing.models import Activation, License, LicenseKey, Seat


def bare(request: HttpRequest) -> JsonResponse:
    """Answer what costs nothing."""
    return JsonResponse({"valid": True, "code": "valid", "detail": "bare"})


class KeyAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[License, None]:
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        key = LicenseKey.objects.filter(digest__in=keys.digests(secret), retired_at=None).first()
        if scheme != "License" or key is None:
            raise AuthenticationFailed
        return License.objects.select_related("plan_revision__plan__product", "customer").get(pk=key.license_id), None


class IsIssued(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return request.user.issued_at is not None  # type: ignore[union-attr]


class LicenseThrottle(SimpleRateThrottle):
    rate = "100000/s"

    def get_cache_key(self, request: Request, view: Any) -> str:
        return f"twin:{request.user.pk}"


class Question(serializers.Serializer[Any]):
    fingerprint = serializers.CharField(required=False)
    product = serializers.CharField(required=False)
    version = serializers.CharField(required=False)
    entitlements = serializers.ListField(child=serializers.CharField(), required=False)
    seat_holder = serializers.EmailField(required=False)


class Twin(APIView):
    """The endpoint as most would write it."""

    authentication_classes = [KeyAuthentication]
    permission_classes = [IsIssued]
    throttle_classes = [LicenseThrottle]
    parser_classes = [JSONParser]
    renderer_classes = [JSONRenderer]

    def post(self, request: Request) -> Response:
        question = Question(data=request.data)
        question.is_valid(raise_exception=True)
        license: Any = request.user
        at = timezone.now()
        status = lifecycle.status_of(license, at)
        valid = status in ("active", "in_grace")
        fingerprint = question.validated_data.get("fingerprint")
        if fingerprint and license.activations_used:
            valid &= Activation.objects.filter(license=license, fingerprint=fingerprint, deactivated_at=None).exists()
        holder = question.validated_data.get("seat_holder")
        if holder:
            valid &= Seat.objects.filter(license=license, holder=holder, state="assigned").exists()
        shown = {
            "id": str(license.pk),
            "plan": license.plan_revision.plan.code,
            "scheme": license.scheme,
            "status": status,
            "expires_at": license.expires_at,
            "grace_until": license.grace_until,
            "seats": {"limit": license.seat_limit, "used": license.seats_used},
            "entitlements": {row.key: row.value or True for row in license.plan_revision.entitlements.all()},
        }
        key = crypto.ring().primary("sign")
        now = int(time.time())
        token = jwt.encode(
            {"sub": shown["id"], "jti": str(uuid.uuid4()), "iat": now, "exp": now + 86_400, "valid": valid},
            Ed25519PrivateKey.from_private_bytes(key.material),
            algorithm="EdDSA",
            headers={"kid": key.kid, "typ": "license+jwt"},
        )
        return Response({"valid": valid, "code": str(status), "license": shown, "checked_at": at, "token": token})
