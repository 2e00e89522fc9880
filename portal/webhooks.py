"""The door for the payment gateway's signed messages. It decides nothing: see `billing.payments.receive`.

2xx only once the effect is committed; everything else is sent again by the gateway, for three days.
"""

import structlog
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from billing import payments
from billing.gateway import GatewayRefused, GatewayUnavailable, SignatureInvalid
from licensing import anomalies
from licensing.states import Severity
from portal.middleware import client_address

log = structlog.get_logger(__name__)

LONGEST = 256 * 1024  # bytes; a message of Stripe's with a big invoice has some tens of thousands


@csrf_exempt
@require_POST
def stripe(request: HttpRequest) -> HttpResponse:
    """Take one message of Stripe's."""
    at = timezone.now()
    try:
        length = int(request.headers.get("Content-Length") or -1)
    except ValueError:
        length = -1
    if length < 0:
        return _said(411)
    if length > LONGEST:
        return _said(413)
    try:
        outcome = payments.receive(body=request.body, signature=request.headers.get("Stripe-Signature", ""), at=at)
    except payments.GatewayOff:
        return _said(404)
    except SignatureInvalid:
        # Off the request, and once an hour and address: whoever floods this door fills no table.
        anomalies.flag_later(
            rule="webhook_forged",
            severity=Severity.HIGH,
            object_kind="address",
            object_id=str(client_address(request)),
            at=at,
            evidence={"path": request.path},
        )
        return _said(400)
    except (GatewayUnavailable, GatewayRefused) as error:
        log.error("webhook_not_taken", error=str(error))
        return _said(503)
    return _said(200, outcome)


def _said(status: int, text: str = "") -> HttpResponse:
    return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")
