"""The management and client calls of the API: each translates, then calls one rule function."""

from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_view
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from licensing import activations, allowances, catalog, credentials, customers, gate, keys, lifecycle, seats, snapshots
from licensing.api import filters
from licensing.api import serializers as shapes
from licensing.api.base import ApiViewSet, once
from licensing.api.door import Answered, plain_request
from licensing.decision import Scope
from licensing.errors import Invalid, Missing
from licensing.models import (
    Activation,
    Anomaly,
    AuditEntry,
    Credential,
    Customer,
    License,
    Member,
    Plan,
    PlanRevision,
    Product,
    Seat,
)
from licensing.states import RevisionState

IDEMPOTENT = [
    OpenApiParameter(
        "Idempotency-Key",
        OpenApiTypes.STR,
        OpenApiParameter.HEADER,
        description="1 to 255 printable characters; the same key and body get the stored answer for 24 hours.",
    )
]


class Validate(APIView):
    """May this license be used here and now? The gate answers; this is only its door."""

    authentication_classes = ()
    permission_classes = ()
    parser_classes = ()
    default_response_headers: dict[str, str] = {}  # what DRF works out anew for each answer

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Leave it to the gate: it knows callers and limits, and there is one form to answer in."""

    @extend_schema(
        operation_id="validate",
        request=shapes.ValidateRequest,
        responses={200: shapes.Validated},
        parameters=[
            OpenApiParameter(
                "x-licentia-nonce",
                OpenApiTypes.STR,
                OpenApiParameter.HEADER,
                description="22 to 128 characters of A-Z a-z 0-9 _ -; needed with a license key; the answer is "
                "then signed and bound to it.",
            )
        ],
    )
    def post(self, request: Request) -> Any:
        """Return a verdict: 200 for every known caller, the code says why."""
        return Answered(gate.validate(plain_request(request._request), timezone.now()))


class ProductViews(ApiViewSet):
    """Products: the programs that are sold."""

    queryset = Product.objects.all()
    serializer_class = shapes.Product
    filterset_class = filters.Products
    read_scope, write_scope = "catalog:read", "catalog:write"

    @extend_schema(parameters=IDEMPOTENT, responses={201: shapes.Product})
    @once
    def create(self, request: Request) -> Response:
        return self.shown(catalog.create_product(by=self.by, at=self.at, **self.body()), status=201)

    @extend_schema(request=shapes.Described)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        return _describe(self)


class PlanViews(ApiViewSet):
    """Plans: the named offers of a product."""

    queryset = Plan.objects.all()
    serializer_class = shapes.Plan
    filterset_class = filters.Plans
    read_scope, write_scope = "catalog:read", "catalog:write"

    @extend_schema(parameters=IDEMPOTENT, responses={201: shapes.Plan})
    @once
    def create(self, request: Request) -> Response:
        body = self.body()
        product = _named(Product, body.pop("product_id"), "/product")
        return self.shown(catalog.create_plan(product=product, by=self.by, at=self.at, **body), status=201)

    @extend_schema(request=shapes.Described)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        return _describe(self)


def _describe(view: ApiViewSet) -> Response:
    row = view.get_object()
    body = view.body(shapes.Described)
    catalog.describe(
        row=row,
        name=body.get("name", row.name),
        description=body.get("description", row.description),
        by=view.by,
        at=view.at,
    )
    return view.shown(view.get_object())


# The rules name a term as it is stored; what a client sent is called after its unit.
_SPANS = (
    "churn_window",
    "activation_dead_after",
    "duration",
    "grace_period",
    "maintenance",
    "outage_tolerance",
    "lease_duration",
    "offline_period",
)
_POINTERS = {f"/{term}": f"/{term}_seconds" for term in _SPANS}


class PlanRevisionViews(ApiViewSet):
    """Plan revisions: the terms of a plan, numbered; a published one never changes."""

    queryset = PlanRevision.objects.prefetch_related("entitlements")
    serializer_class = shapes.PlanRevision
    filterset_class = filters.PlanRevisions
    read_scope, write_scope = "catalog:read", "catalog:write"

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if not getattr(self, "swagger_fake_view", False) and self.caller.customer_id is not None:
            rows = rows.exclude(state=RevisionState.DRAFT)
        return rows

    def handle_exception(self, exc: Exception) -> Any:
        if isinstance(exc, Invalid):
            exc.pointer = _POINTERS.get(exc.pointer, exc.pointer)
        return super().handle_exception(exc)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.NewPlanRevision, responses={201: shapes.PlanRevision})
    @once
    def create(self, request: Request) -> Response:
        body = self.body(shapes.NewPlanRevision)
        plan = _named(Plan, body.pop("plan"), "/plan")
        revision = catalog.draft(plan=plan, by=self.by, at=self.at, grants=_grants(body), **body)
        return self.shown(revision, status=201)

    @extend_schema(request=shapes.Terms)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        row = self.get_object()
        body = self.body(shapes.Terms)
        catalog.edit(revision=row, by=self.by, at=self.at, grants=_grants(body), **body)
        return self.shown(self.get_object())

    def destroy(self, request: Request, pk: UUID) -> Response:
        catalog.discard(revision=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.OptionalReason)
    @action(detail=True, methods=["post"])
    @once
    def publish(self, request: Request, pk: UUID) -> Response:
        body = self.body(shapes.OptionalReason)
        catalog.publish(revision=self.get_object(), by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.OptionalReason)
    @action(detail=True, methods=["post"])
    @once
    def retire(self, request: Request, pk: UUID) -> Response:
        body = self.body(shapes.OptionalReason)
        catalog.retire(revision=self.get_object(), by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(
        parameters=[OpenApiParameter("against", OpenApiTypes.UUID, required=True, description="The other revision")],
        responses=shapes.Difference(many=True),
        filters=False,
    )
    @action(detail=True, methods=["get"], pagination_class=None)
    def diff(self, request: Request, pk: UUID) -> Response:
        """Return what is different in this revision, against another, in words."""
        row = self.get_object()
        other = _row(self.get_queryset(), request.query_params.get("against", ""), "/against")
        return Response(shapes.Difference(catalog.diff(other, row), many=True).data)


def _grants(body: dict[str, Any]) -> list[catalog.Grant] | None:
    if "entitlements" not in body:
        return None
    return [catalog.Grant(**entitlement) for entitlement in body.pop("entitlements")]


class CustomerViews(ApiViewSet):
    """Customers: the organizations that buy."""

    queryset = Customer.objects.all()
    serializer_class = shapes.Customer
    filterset_class = filters.Customers
    read_scope, write_scope, tenant = "customers:read", "customers:write", "id"

    @extend_schema(parameters=IDEMPOTENT, responses={201: shapes.Customer})
    @once
    def create(self, request: Request) -> Response:
        return self.shown(customers.create(by=self.by, at=self.at, **self.body()), status=201)

    @extend_schema(request=shapes.ChangedCustomer)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        row = self.get_object()
        body = self.body(shapes.ChangedCustomer)
        changed = customers.change(
            customer=row,
            name=body.get("name", row.name),
            email=body.get("email", row.email),
            by=self.by,
            at=self.at,
        )
        return self.shown(changed)


class MemberViews(ApiViewSet):
    """Members: who may act for a customer in the portal."""

    queryset = Member.objects.select_related("user")
    serializer_class = shapes.Member
    filterset_class = filters.Members
    read_scope, write_scope, tenant = "customers:read", "customers:write", "customer_id"

    @extend_schema(parameters=IDEMPOTENT, responses={201: shapes.Member})
    @once
    def create(self, request: Request) -> Response:
        body = self.body()
        customer = _named(Customer, body["customer_id"], "/customer")
        invited = {"customer": customer, "email": body["user"]["email"], "role": body["role"]}
        try:
            member = customers.invite(**invited, by=self.by, at=self.at)
        except IntegrityError:  # somebody else invited the same new person at this moment: now they are known
            member = customers.invite(**invited, by=self.by, at=self.at)
        return self.shown(member, status=201)

    @extend_schema(request=shapes.ChangedMember)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        row = self.get_object()
        customers.change_role(member=row, role=self.body(shapes.ChangedMember)["role"], by=self.by, at=self.at)
        return self.shown(self.get_object())

    def destroy(self, request: Request, pk: UUID) -> Response:
        customers.remove_member(member=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)


@extend_schema_view(list=extend_schema(operation_id="licenses_list"))
class LicenseViews(ApiViewSet):
    """Licenses: one customer's right to use one product."""

    queryset = License.objects.select_related("plan_revision").prefetch_related("holds", "keys")
    serializer_class = shapes.LicenseRow
    filterset_class = filters.Licenses
    read_scope, write_scope, tenant = "licenses:read", "licenses:write", "customer_id"

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if not getattr(self, "swagger_fake_view", False) and self.caller.customer_id is not None:
            rows = rows.filter(issued_at__isnull=False)
        return rows

    @extend_schema(parameters=IDEMPOTENT, request=shapes.NewLicense, responses={201: shapes.IssuedLicense})
    @once
    def create(self, request: Request) -> Response:
        """Issue a license. The answer holds its key, this once."""
        body = self.body(shapes.NewLicense)
        customer = _named(Customer, body.pop("customer"), "/customer")
        revision = _revision(body)
        license, key = lifecycle.issue(customer=customer, plan_revision=revision, by=self.by, at=self.at, **body)
        return self.shown(_row(self.get_queryset(), license.pk), status=201, key=key)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.HoldReasonBody)
    @action(detail=True, methods=["post"])
    @once
    def hold(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(shapes.HoldReasonBody)
        lifecycle.hold(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.HoldReasonBody)
    @action(detail=True, methods=["post"])
    @once
    def lift(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(shapes.HoldReasonBody)
        lifecycle.lift(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.Renewal)
    @action(detail=True, methods=["post"])
    @once
    def renew(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(shapes.Renewal)
        try:
            lifecycle.renew(
                license=row,
                by=self.by,
                at=self.at,
                reason=body.get("reason", ""),
                duration=body.get("duration_seconds"),
            )
        except OverflowError:
            raise Invalid("No license runs that long.", pointer="/duration_seconds") from None
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.Reason)
    @action(detail=True, methods=["post"])
    @once
    def revoke(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(shapes.Reason)
        lifecycle.revoke(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.Transfer)
    @action(detail=True, methods=["post"])
    @once
    def transfer(self, request: Request, pk: UUID) -> Response:
        """Give the license to another customer: seats and machines are let go, the key is replaced."""
        row, body = self.get_object(), self.body(shapes.Transfer)
        to = _named(Customer, body.pop("customer"), "/customer")
        lifecycle.transfer(license=row, to=to, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())

    @extend_schema(parameters=IDEMPOTENT, request=shapes.Reason, responses=shapes.IssuedLicense)
    @action(detail=True, methods=["post"], url_path="rotate-key")
    @once
    def rotate_key(self, request: Request, pk: UUID) -> Response:
        """Replace the key. The answer holds the new one, this once; the old one names nothing from now on."""
        row, body = self.get_object(), self.body(shapes.Reason)
        key = keys.rotate(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object(), key=key)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.LimitChange)
    @action(detail=True, methods=["post"], url_path="change-limits")
    @once
    def change_limits(self, request: Request, pk: UUID) -> Response:
        row, body = self.get_object(), self.body(shapes.LimitChange)
        lifecycle.change_limits(license=row, by=self.by, at=self.at, **body)
        return self.shown(self.get_object())


class SeatViews(ApiViewSet):
    """Seats: the named capacity of a license."""

    queryset = Seat.objects.all()
    serializer_class = shapes.Seat
    filterset_class = filters.Seats
    read_scope, write_scope, tenant = "seats:read", "seats:write", "license__customer_id"

    @extend_schema(parameters=IDEMPOTENT, responses={200: shapes.Seat, 201: shapes.Seat})
    @once
    def create(self, request: Request) -> Response:
        """Assign a seat: 201, or 200 with the seat the holder has."""
        body = self.body()
        license = self._license(body["license_id"])
        assigned = seats.assign(license=license, holder=body["holder"], by=self.by, at=self.at)
        return self.shown(assigned.seat, status=201 if assigned.created else 200)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Release the seat. Releasing twice changes nothing."""
        seats.release(seat=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.Heir)
    @action(detail=True, methods=["post"])
    @once
    def transfer(self, request: Request, pk: UUID) -> Response:
        """Hand the seat to another holder in one step; the answer is theirs."""
        row, body = self.get_object(), self.body(shapes.Heir)
        return self.shown(seats.transfer(seat=row, to=body["holder"], by=self.by, at=self.at))

    def _license(self, license_id: UUID) -> License:
        self.about = license_id
        return _row(_licenses_of(self), license_id, "/license")


class ActivationViews(ApiViewSet):
    """Activations: the machines bound to a license."""

    queryset = Activation.objects.all()
    serializer_class = shapes.Activation
    filterset_class = filters.Activations
    read_scope, write_scope, tenant = "activations", "activations", "license__customer_id"

    def get_queryset(self) -> Any:
        rows = super().get_queryset()
        if not getattr(self, "swagger_fake_view", False) and self.caller.license_id is not None:
            rows = rows.filter(license_id=self.caller.license_id)
            if self.caller.activation_id is not None:
                rows = rows.filter(pk=self.caller.activation_id)
        return rows

    @extend_schema(
        parameters=IDEMPOTENT,
        request=shapes.NewActivation,
        responses={200: shapes.Activation, 201: shapes.Activation},
    )
    @once
    def create(self, request: Request) -> Response:
        """Activate a machine: 201, or 200 with the activation it has.

        A `public_key` is registered when this very request is signed by it, with its thumbprint as `keyid`.
        """
        body = self.body(shapes.NewActivation)
        license = _called_license(self, body.pop("license", None))
        if self.caller.activation_id is not None:
            own = Activation.objects.get(pk=self.caller.activation_id)
            if body.get("fingerprint") != own.fingerprint or "public_key" in body:
                raise activations.ActivationKeyConflict("A machine renews its own activation, with the key it has.")
        proved = gate.proof_of_possession(plain_request(request._request), body.pop("public_key", None), self.at)
        activated = activations.activate(license=license, by=self.by, at=self.at, **body, **proved)
        return self.shown(activated.activation, status=201 if activated.created else 200)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Let the machine go. Doing it twice changes nothing."""
        activations.deactivate(activation=self._own(), by=self.by, at=self.at)
        return Response(status=204)

    @extend_schema(parameters=IDEMPOTENT, request=shapes.MachineReport)
    @action(detail=True, methods=["post"])
    @once
    def heartbeat(self, request: Request, pk: UUID) -> Response:
        """Note that the machine was seen. It may say that its clock was turned back, which is noted as an anomaly."""
        row, body = self._own(), self.body(shapes.MachineReport)
        return self.shown(activations.heartbeat(activation=row, at=self.at, **body))

    def _own(self) -> Activation:
        """Return the activation a call is about. One with a key of its own is touched by no license key alone."""
        row: Activation = self.get_object()
        if self.caller.kind == "L" and row.key_thumbprint:
            raise gate.SignedClientRequired("This machine signs its requests; its license key does not act for it.")
        return row


class EntitlementViews(ApiViewSet):
    """Entitlements: what a license grants."""

    serializer_class = shapes.Entitlements
    queryset = License.objects.all()
    read_scope, write_scope, tenant = "validate", "validate", "customer_id"

    @extend_schema(
        operation_id="entitlements",
        parameters=[OpenApiParameter("license", OpenApiTypes.UUID, description="For a server: whose rights")],
        responses=shapes.Entitlements,
    )
    def show(self, request: Request) -> Response:
        """Return what a license grants; of an allowance, also what is used and left right now."""
        license = _called_license(self, request.query_params.get("license"))
        found = snapshots.by_id(license.pk, Scope())
        if found is None:
            raise Missing()
        left = allowances.remaining(license=license, at=self.at)
        shown: dict[str, Any] = {}
        for key, right in found.picture.snapshot.entitlements.items():
            shown[key] = right.shown()
            if right.meter in left:
                shown[key]["used"] = allowances.text(left[right.meter].used)
                shown[key]["remaining"] = allowances.text(left[right.meter].remaining)
        return Response({"license": str(license.pk), "entitlements": shown})


class CredentialViews(ApiViewSet):
    """Credentials: who may call this API."""

    queryset = Credential.objects.all()
    serializer_class = shapes.Credential
    filterset_class = filters.Credentials
    read_scope, write_scope, tenant = "credentials:read", "credentials:write", "customer_id"

    @extend_schema(parameters=IDEMPOTENT, responses={201: shapes.NewCredential})
    @once
    def create(self, request: Request) -> Response:
        """Make a credential. The answer holds its secret, this once."""
        body = self.body()
        customer_id = body.pop("customer_id", None)
        customer = _named(Customer, customer_id, "/customer") if customer_id else None
        credential, secret = credentials.create(
            customer=customer, by=self.by, at=self.at, maker=Credential.objects.get(pk=self.caller.id), **body
        )
        return self.shown(credential, status=201, secret=secret)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Revoke the credential. Doing it twice changes nothing."""
        credentials.revoke(credential=self.get_object(), by=self.by, at=self.at)
        return Response(status=204)


class AnomalyViews(ApiViewSet):
    """Anomalies: recorded suspicions."""

    queryset = Anomaly.objects.all()
    serializer_class = shapes.Anomaly
    filterset_class = filters.Anomalies
    read_scope, write_scope, tenant = "anomalies:read", "anomalies:read", "license__customer_id"
    http_method_names = ["get", "head", "options"]


class AuditEntryViews(ApiViewSet):
    """Audit entries: who did what to what, why and when."""

    queryset = AuditEntry.objects.all()
    serializer_class = shapes.AuditEntry
    filterset_class = filters.AuditEntries
    read_scope, write_scope, tenant = "audit:read", "audit:read", "customer_id"
    http_method_names = ["get", "head", "options"]


def _licenses_of(view: ApiViewSet) -> Any:
    rows = License.objects.select_related("plan_revision")
    if view.caller.license_id is not None:
        return rows.filter(pk=view.caller.license_id)
    if view.caller.customer_id is not None:
        return rows.filter(customer_id=view.caller.customer_id)
    return rows


def _called_license(view: ApiViewSet, license_id: Any) -> License:
    """Return the license a call is about: a license key's own, or the one a server names."""
    if license_id is None:
        if view.caller.license_id is None:
            raise Invalid("Say which license.", pointer="/license")
        license_id = view.caller.license_id
    license = _row(_licenses_of(view), license_id, "/license")
    view.about = license.pk
    return license


def _named(model: type[Any], row_id: UUID, pointer: str) -> Any:
    return _row(model.objects.all(), row_id, pointer)


def _revision(body: dict[str, Any]) -> PlanRevision:
    """Take the revision out of a body: the one named, or the published one of the plan named."""
    revisions = PlanRevision.objects.select_related("plan__product")
    if "plan_revision" in body:
        return _row(revisions, body.pop("plan_revision"), "/plan_revision")
    plan = _named(Plan, body.pop("plan"), "/plan")
    revision = revisions.filter(plan=plan, state=RevisionState.PUBLISHED).first()
    if revision is None:
        raise lifecycle.NotPublished("This plan has no published revision.")
    return revision


def _row(rows: Any, row_id: Any, pointer: str = "") -> Any:
    """Return the row a body names. One that is not there, or another customer's, is `Missing` in the same words."""
    try:
        row = rows.filter(pk=UUID(str(row_id))).first()
    except ValueError:
        raise Invalid("That is no id.", pointer=pointer) from None
    if row is None:
        raise Missing("There is no such thing.")
    return row


validate = csrf_exempt(Validate.as_view())
