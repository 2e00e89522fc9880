"""The calls for leases and license files: each translates, then calls one rule function."""

from typing import Any
from uuid import UUID

from django_filters import rest_framework as rest_filters
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from licensing import leases, license_files
from licensing.api.base import ApiViewSet, StrictSerializer, once
from licensing.api.filters import Filters
from licensing.api.serializers import FingerprintField, FlagField, IdField, InstantField, SecondsField, TextField
from licensing.api.views import IDEMPOTENT, _called_license
from licensing.errors import Invalid, Missing
from licensing.models import Activation, Lease, License, LicenseFile


class Leases(Filters):
    license = rest_filters.UUIDFilter(field_name="license_id")
    live = rest_filters.BooleanFilter(field_name="ended_at", lookup_expr="isnull")

    class Meta:
        model = Lease
        fields = ["fingerprint", "offline"]


class LicenseFiles(Filters):
    license = rest_filters.UUIDFilter(field_name="license_id")
    activation = rest_filters.UUIDFilter(field_name="activation_id")

    class Meta:
        model = LicenseFile
        fields: list[str] = []


class ShownLease(serializers.Serializer[Any]):
    """A lease. `ttl_seconds` is what is left of it at the instant of the answer."""

    id = serializers.UUIDField()
    license = serializers.UUIDField(source="license_id")
    fingerprint = serializers.CharField(allow_blank=True)
    offline = serializers.BooleanField()
    checked_out_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    ttl_seconds = serializers.SerializerMethodField()

    def get_ttl_seconds(self, row: Lease) -> int:
        left = (row.expires_at - self.context["at"]).total_seconds()
        return 0 if row.ended_at else max(int(left), 0)


class SignedLease(ShownLease):
    """A lease just checked out or renewed, with the signed statement of it."""

    token = serializers.CharField(help_text="Compact JWS, alg EdDSA, typ lease+jwt")


class NewLease(StrictSerializer):
    """What is checked out. `license` is for a server; a license key or machine takes its own license's."""

    license = IdField(required=False)
    ttl_seconds = SecondsField(required=False)
    offline = FlagField(required=False)
    fingerprint = FingerprintField(required=False)


class Heartbeat(StrictSerializer):
    """For how long the lease runs on; without it, as long as the plan says."""

    ttl_seconds = SecondsField(required=False)


class ShownLicenseFile(serializers.Serializer[Any]):
    """The record of a license file that was issued."""

    id = serializers.UUIDField()
    license = serializers.UUIDField(source="license_id")
    activation = serializers.UUIDField(source="activation_id")
    issued_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    encrypted = serializers.BooleanField()


class IssuedLicenseFile(ShownLicenseFile):
    """A license file just issued: the only answer that holds it."""

    file = serializers.CharField(help_text="PEM-armoured JWS, typ license-file+jwt; or a JWE of it, when encrypted")


class NewLicenseFile(StrictSerializer):
    """Give the text of a machine's `request` file, or the `fingerprint` of a machine that is activated."""

    license = IdField(required=False)
    request = TextField(required=False, trim_whitespace=False, max_length=license_files.LONGEST_REQUEST)
    fingerprint = FingerprintField(required=False)
    expires_at = InstantField(required=False)
    encrypt = FlagField(required=False)
    seat_holder = serializers.EmailField(required=False, max_length=254)


class _Own(ApiViewSet):
    """What a license key sees of its own license, and a machine of its own."""

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if not getattr(self, "swagger_fake_view", False):
            if self.caller.license_id is not None:
                rows = rows.filter(license_id=self.caller.license_id)
            if self.caller.activation_id is not None:
                rows = rows.filter(activation_id=self.caller.activation_id)
        return rows

    def own_machine(self) -> Activation | None:
        """Return the machine that calls, when one does."""
        if self.caller.activation_id is None:
            return None
        return Activation.objects.get(pk=self.caller.activation_id)

    def machine(self, license: License, fingerprint: str | None) -> Activation | None:
        """Return the live machine that calls, or the one the body names, if it is activated."""
        own = self.own_machine()
        if own is not None:
            if fingerprint not in (None, own.fingerprint):
                raise Invalid("A machine speaks for itself: leave the fingerprint out.", pointer="/fingerprint")
            return own
        if fingerprint is None:
            return None
        return Activation.objects.filter(license=license, fingerprint=fingerprint, deactivated_at=None).first()


class LeaseViews(_Own):
    """Leases: floating capacity, taken for a time."""

    queryset = Lease.objects.select_related("license__product")
    serializer_class = ShownLease
    filterset_class = Leases
    read_scope, write_scope, tenant = "leases", "leases", "license__customer_id"

    @extend_schema(parameters=IDEMPOTENT, request=NewLease, responses={200: SignedLease, 201: SignedLease})
    @once
    def create(self, request: Request) -> Response:
        """Check a lease out: 201, or 200 with the machine's live one, renewed."""
        body = self.body(NewLease)
        license = _called_license(self, body.get("license"))
        machine = self.machine(license, body.get("fingerprint"))
        done = leases.check_out(
            license=license,
            by=self.by,
            at=self.at,
            ttl=body.get("ttl_seconds"),
            offline=body.get("offline", False),
            fingerprint=machine.fingerprint if machine else body.get("fingerprint", ""),
            activation=machine,
        )
        return self._signed(done.lease, status=201 if done.created else 200)

    @extend_schema(parameters=IDEMPOTENT, request=Heartbeat, responses={200: SignedLease})
    @action(detail=True, methods=["post"])
    @once
    def renew(self, request: Request, pk: UUID) -> Response:
        """Have the lease run on, from now."""
        row, body = self.get_object(), self.body(Heartbeat)
        return self._signed(leases.renew(lease=row, at=self.at, ttl=body.get("ttl_seconds")))

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Check the lease in: its unit is free at once. Doing it twice changes nothing."""
        leases.check_in(lease=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)

    def _signed(self, row: Lease, *, status: int = 200) -> Response:
        return self.shown(row, status=status, token=leases.statement(row, self.at))


class LicenseFileViews(_Own):
    """License files: a license's terms for one machine, to be read offline."""

    queryset = LicenseFile.objects.all()
    serializer_class = ShownLicenseFile
    filterset_class = LicenseFiles
    read_scope, write_scope, tenant = "activations", "activations", "license__customer_id"

    @extend_schema(parameters=IDEMPOTENT, request=NewLicenseFile, responses={201: IssuedLicenseFile})
    @once
    def create(self, request: Request) -> Response:
        """Issue a license file. The answer holds it, this once."""
        body = self.body(NewLicenseFile)
        license = _called_license(self, body.get("license"))
        asked = license_files.read_request(body["request"], self.at) if "request" in body else None
        issued = license_files.issue(
            license=license,
            by=self.by,
            at=self.at,
            request=asked,
            activation=self._machine(license, asked, body),
            expires_at=body.get("expires_at"),
            encrypt=body.get("encrypt", False),
            seat_holder=body.get("seat_holder"),
        )
        return self.shown(issued.record, status=201, file=issued.text)

    def _machine(
        self, license: License, asked: license_files.Request | None, body: dict[str, Any]
    ) -> Activation | None:
        own = self.own_machine()
        if asked is not None and "fingerprint" in body:
            raise Invalid("Give either request or fingerprint.", pointer="/fingerprint")
        if asked is not None:
            if own is not None and (asked.fingerprint, asked.public_key) != (
                own.fingerprint,
                bytes(own.public_key or b""),
            ):
                raise Invalid("The request is another machine's.", pointer="/request")
            return own
        machine = self.machine(license, body.get("fingerprint"))
        if machine is None and "fingerprint" not in body:
            raise Invalid("Give the machine's request, or the fingerprint of an activated one.", pointer="/request")
        if machine is None:
            raise Missing("There is no such machine on this license. Activate it first.")
        return machine
