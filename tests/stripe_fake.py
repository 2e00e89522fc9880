"""Stripe, as far as we use it: a real HTTP server on loopback, spoken to through the official library.

It keeps what the documentation promises: form-encoded nested parameters, idempotency keys (same key and parameters, the
same answer; other parameters, 400; forgotten after a day), a search that lags behind, lists that do not, meters and
meter events unique by identifier, signed webhooks. Its clock stands until a test moves it. `fail` makes the next calls
fail in a given way. What we do not use it does not know: it answers 404 there, and 400 to unknown parameters.
"""

import json
import re
import socket
import threading
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import stripe

KEY, WEBHOOK_SECRET = "sk_test_fake_0123456789abcdef", "whsec_fake_0123456789abcdef"
DAY = timedelta(days=1)
SEARCH_LAG = timedelta(minutes=1)
ALLOWED = {
    "POST /v1/customers": {"name", "email", "metadata"},
    "POST /v1/invoices": {
        *("customer", "currency", "description", "collection_method", "days_until_due", "auto_advance"),
        *("pending_invoice_items_behavior", "metadata"),
    },
    "POST /v1/invoiceitems": {"customer", "invoice", "currency", "amount", "description", "metadata"},
    "POST /v1/payment_records/report_payment": {
        *("amount_requested", "initiated_at", "outcome", "guaranteed", "payment_method_details", "metadata"),
    },
    "POST /v1/billing/meters": {"display_name", "event_name", "default_aggregation"},
    "POST /v1/billing/meter_events": {"event_name", "identifier", "timestamp", "payload"},
}


class Refusal(Exception):
    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str = "") -> None:
        super().__init__(message)
        self.status, self.kind, self.code = status, kind, code


class Cut(Exception):
    """The connection ends without an answer."""


class StripeFake:
    """Use as a context manager; `base` is its address."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.customers: dict[str, dict[str, Any]] = {}
        self.invoices: dict[str, dict[str, Any]] = {}
        self.items: dict[str, dict[str, Any]] = {}
        self.meters: dict[str, dict[str, Any]] = {}
        self.meter_events: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.invoice_payments: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.disputes: dict[str, dict[str, Any]] = {}
        self.credit_notes: dict[str, dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self._answers: dict[str, tuple[datetime, str, dict[str, Any], int, dict[str, Any]]] = {}
        self._failures: list[tuple[str, str, float]] = []
        self._outside: Counter[str] = Counter()
        self._numbers = count(1)
        self._lock = threading.RLock()

    def __enter__(self) -> "StripeFake":
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _do(self) -> None:
                fake._serve(self)

            do_GET = do_POST = do_DELETE = _do

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    # --- what tests do ------------------------------------------------------------------------------

    def fail(self, how: str, *, on: str = "", times: int = 1, seconds: float = 0) -> None:
        """Let the next calls whose "METHOD /path" begins with `on` fail: `500`, `429`, `reset` (before the effect),
        `lost` (after it), `500_after`, or `slow` (for so many seconds, then answered)."""
        self._failures += [(how, on, seconds)] * times

    def pay(self, invoice_id: str, amount: int | None = None) -> dict[str, Any]:
        """The customer pays at the hosted page, what is asked for or a part of it; return the event."""
        with self._lock:
            invoice = self.invoices[invoice_id]
            assert invoice["status"] == "open", invoice["status"]
            intent = f"pi_{next(self._numbers)}"
            amount = invoice["amount_remaining"] if amount is None else amount
            made = self._pay(invoice, amount, {"type": "payment_intent", "payment_intent": intent})
            if invoice["status"] == "open":
                return self.event("invoice_payment.paid", made)
            return self.event("invoice.paid", invoice)

    def refund(self, invoice_id: str, amount: int, status: str = "succeeded") -> dict[str, Any]:
        """Somebody gives money back in the dashboard; return the event, which is about the charge."""
        with self._lock:
            charge = self._charge(invoice_id)
            self._new(self.refunds, "re", "refund", {**charge, "amount": amount, "currency": "eur", "status": status})
            return self.event("charge.refunded", {"id": charge["charge"], "object": "charge", "refunded": True})

    def dispute(self, invoice_id: str, status: str = "needs_response") -> dict[str, Any]:
        """The customer's bank takes the payment back; return the event."""
        with self._lock:
            amount = self.invoices[invoice_id]["amount_paid"]
            values = {**self._charge(invoice_id), "amount": amount, "currency": "eur", "status": status}
            return self.event("charge.dispute.created", self._new(self.disputes, "dp", "dispute", values))

    def credit(self, invoice_id: str, amount: int, *, by_refund: bool = False) -> dict[str, Any]:
        """Somebody makes a credit note in the dashboard: first of what is open, the rest of what was paid; event."""
        with self._lock:
            invoice = self.invoices[invoice_id]
            before = min(amount, invoice["amount_remaining"])
            after = amount - before
            refunds = []
            if by_refund:
                self.refund(invoice_id, after)
                refunds = [{"amount_refunded": after, "refund": list(self.refunds)[-1]}]
            values = {
                **{"invoice": invoice_id, "currency": "eur", "amount": amount, "status": "issued", "refunds": refunds},
                **{"pre_payment_amount": before, "post_payment_amount": after},
            }
            note = self._new(self.credit_notes, "cn", "credit_note", values)
            invoice["amount_due"] -= before
            invoice["pre_payment_credit_notes_amount"] += before
            self._remain(invoice)
            return self.event("credit_note.created", note)

    def becomes(self, where: dict[str, Any], status: str, kind: str) -> dict[str, Any]:
        """Let the last thing of a kind come to another state; return the event."""
        with self._lock:
            thing = list(where.values())[-1]
            thing["status"] = status
            return self.event(kind, thing)

    def _charge(self, invoice_id: str) -> dict[str, Any]:
        paid = [row for row in self.invoice_payments.values() if row["invoice"] == invoice_id]
        intent = next(row["payment"]["payment_intent"] for row in paid if "payment_intent" in row["payment"])
        return {"payment_intent": intent, "charge": intent.replace("pi_", "ch_")}

    def _pay(self, invoice: dict[str, Any], amount: int, payment: dict[str, Any]) -> dict[str, Any]:
        values = {"invoice": invoice["id"], "amount_paid": amount, "status": "paid", "payment": payment}
        invoice["amount_paid"] += amount
        self._remain(invoice)
        return self._new(self.invoice_payments, "inpay", "invoice_payment", values)

    def _remain(self, invoice: dict[str, Any]) -> None:
        invoice["amount_remaining"] = max(invoice["amount_due"] - invoice["amount_paid"], 0)
        if invoice["status"] == "open" and not invoice["amount_remaining"]:
            invoice["status"] = "paid"

    def event(self, kind: str, about: dict[str, Any]) -> dict[str, Any]:
        event = {
            **{"id": f"evt_{next(self._numbers)}", "object": "event", "type": kind, "livemode": False},
            **{"created": int(self.at.timestamp()), "api_version": "2026-05-27.dahlia", "pending_webhooks": 1},
            "data": {"object": dict(about)},
        }
        self.events.append(event)
        return event

    def signed(
        self, event: dict[str, Any], *, secret: str = WEBHOOK_SECRET, at: float | None = None
    ) -> tuple[bytes, str]:
        """Return the body and the Stripe-Signature of a webhook, signed by the library at `at` (now)."""
        body = json.dumps(event, indent=2)
        header = stripe.WebhookSignature.generate_signature_header(body, secret, int(at or time.time()))
        return body.encode(), header

    def send(self, event: dict[str, Any], url: str) -> int:
        """Deliver the webhook to a URL; return the status."""
        body, header = self.signed(event)
        request = urllib.request.Request(url, data=body, headers={"Stripe-Signature": header})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status

    # --- the server ---------------------------------------------------------------------------------

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0)).decode()
        url = urlsplit(handler.path)
        params = _nested(parse_qsl(url.query) + parse_qsl(raw, keep_blank_values=True))
        call = f"{handler.command} {url.path}"
        headers: dict[str, str] = {"Request-Id": f"req_{next(self._numbers)}"}
        how, seconds = self._failure(call)
        try:
            if how == "reset":
                raise Cut
            if how in ("500", "429"):
                kind = "rate_limit_error" if how == "429" else "api_error"
                raise Refusal(int(how), "Something went wrong.", kind)
            if handler.headers.get("Authorization") != f"Bearer {KEY}":
                raise Refusal(401, f"Invalid API Key provided: {handler.headers.get('Authorization')}")
            status, body = self._once(handler.headers.get("Idempotency-Key"), call, params, headers, how == "500_after")
            if how == "lost":
                raise Cut
            if how == "slow":
                time.sleep(seconds)
        except Refusal as refusal:
            status = refusal.status
            body = {"error": {"type": refusal.kind, "message": str(refusal), "code": refusal.code or None}}
        except Cut:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        sent = json.dumps(body).encode()
        try:
            handler.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(sent)}.items():
                handler.send_header(name, str(value))
            handler.end_headers()
            handler.wfile.write(sent)
        except OSError:
            handler.close_connection = True  # the client waits no longer

    def _failure(self, call: str) -> tuple[str, float]:
        with self._lock:
            for index, (how, on, seconds) in enumerate(self._failures):
                if call.startswith(on):
                    del self._failures[index]
                    return how, seconds
        return "", 0

    def _once(
        self, key: str | None, call: str, params: dict[str, Any], headers: dict[str, str], broken: bool
    ) -> tuple[int, dict[str, Any]]:
        with self._lock:
            known = self._answers.get(key or "")
            if key and call.startswith("POST") and known and self.at - known[0] < DAY:
                if known[1:3] != (call, params):
                    raise Refusal(
                        400,
                        "Keys for idempotent requests can only be used with the same parameters they were first used "
                        "with.",
                        "idempotency_error",
                    )
                headers["Idempotent-Replayed"] = "true"
                return known[3:]
            body = self._answer(call, params)
            self.calls[re.sub(r"/(in|cus)_\d+", "/:id", call)] += 1
            answer = (500, {"error": {"type": "api_error", "message": "Sorry."}}) if broken else (200, body)
            if key:
                self._answers[key] = (self.at, call, params, *answer)
            return answer

    def _answer(self, call: str, params: dict[str, Any]) -> dict[str, Any]:
        expand = {name.removeprefix("data.") for name in params.pop("expand", {}).values()}
        if call in ALLOWED and (unknown := params.keys() - ALLOWED[call]):
            raise Refusal(400, f"Received unknown parameter: {sorted(unknown)[0]}", code="parameter_unknown")
        match call.split("/v1/")[0].strip(), call.split("/v1/")[-1].split("/"):
            case "GET", ["customers", "search"]:
                return self._search(params)
            case "POST", ["customers"]:
                return self._new(self.customers, "cus", "customer", params)
            case "POST", ["invoices"]:
                return self._shown(self._new_invoice(params), expand)
            case "GET", ["invoices"]:
                return self._listed(self.invoices, "/v1/invoices", params, expand)
            case "POST", ["invoices", key, "attach_payment"]:
                return self._shown(self._attach(self._of(self.invoices, key), params), expand)
            case "POST", ["payment_records", "report_payment"]:
                if params["outcome"] != "guaranteed" or int(params["amount_requested"]["value"]) < 1:
                    raise Refusal(400, "Not a payment that came in.")
                return self._new(self.records, "pr", "payment_record", params)
            case "GET", ["invoice_payments"]:
                return self._list_payments(params)
            case "GET", ["refunds" | "disputes" | "credit_notes" as name]:
                return self._listed(getattr(self, name), f"/v1/{name}", params, expand)
            case "GET", ["refunds" | "disputes" | "credit_notes" as name, key]:
                return self._of(getattr(self, name), key)
            case "GET", ["invoices", key]:
                return self._shown(self._of(self.invoices, key), expand)
            case "DELETE", ["invoices", key]:
                if self._of(self.invoices, key)["status"] != "draft":
                    raise Refusal(400, "You can only delete draft invoices.")
                del self.invoices[key]
                return {"id": key, "object": "invoice", "deleted": True}
            case "POST", ["invoices", key, act]:
                return self._shown(self._act(self._of(self.invoices, key), act, params), expand)
            case "POST", ["invoiceitems"]:
                return self._new_item(params)
            case "GET", ["invoiceitems"]:
                return self._listed(self.items, "/v1/invoiceitems", params, expand)
            case "POST", ["billing", "meters"]:
                meter = self._new(self.meters, "mtr", "billing.meter", {**params, "status": "active"})
                return meter
            case "POST", ["billing", "meter_events"]:
                return self._new_meter_event(params)
            case "GET", ["events"]:
                return {"object": "list", "url": "/v1/events", "has_more": False, "data": self.events[::-1]}
        raise Refusal(404, f"Unrecognized request URL ({call}).")

    def _new(self, where: dict[str, Any], prefix: str, kind: str, values: dict[str, Any]) -> dict[str, Any]:
        key = f"{prefix}_{next(self._numbers):06}"
        base = {"id": key, "object": kind, "created": int(self.at.timestamp()), "livemode": False, "metadata": {}}
        where[key] = base | values
        return where[key]

    def _of(self, where: dict[str, Any], key: str) -> dict[str, Any]:
        if key not in where:
            raise Refusal(
                404, f"No such {'invoice' if where is self.invoices else 'object'}: '{key}'", code="resource_missing"
            )
        return where[key]

    def _shown(self, invoice: dict[str, Any], expand: set[str]) -> dict[str, Any]:
        if "amount_paid_off_stripe" in expand:
            return invoice | {"amount_paid_off_stripe": self._outside[invoice["id"]]}
        return dict(invoice)

    def _search(self, params: dict[str, Any]) -> dict[str, Any]:
        found = re.fullmatch(r"metadata\['(\w+)'\]:'([^']*)'", params["query"])
        if not found:
            raise Refusal(400, "We were unable to parse your search query.")
        name, value = found.groups()
        seen = (self.at - SEARCH_LAG).timestamp()
        data = [
            each for each in self.customers.values() if each["created"] <= seen and each["metadata"].get(name) == value
        ]
        return {"object": "search_result", "url": "/v1/customers/search", "has_more": False, "data": data}

    def _listed(self, where: dict[str, Any], url: str, params: dict[str, Any], expand: set[str]) -> dict[str, Any]:
        rows = sorted(where.values(), key=lambda row: row["id"], reverse=True)
        for name in ("customer", "invoice", "charge"):
            if name in params:
                rows = [row for row in rows if row[name] == params[name]]
        if "created" in params:
            rows = [row for row in rows if row["created"] >= int(params["created"]["gte"])]
        if "starting_after" in params:
            rows = [row for row in rows if row["id"] < params["starting_after"]]
        limit = int(params.get("limit", 10))
        page = [self._shown(row, expand) if where is self.invoices else row for row in rows[:limit]]
        return {"object": "list", "url": url, "has_more": len(rows) > limit, "data": page}

    def _new_invoice(self, params: dict[str, Any]) -> dict[str, Any]:
        self._of(self.customers, params["customer"])
        if params.get("collection_method") == "send_invoice" and int(params.get("days_until_due", 0)) < 1:
            raise Refusal(400, "An invoice that is sent needs days_until_due.")
        values = {
            **params,
            **{"status": "draft", "total": 0, "subtotal": 0, "amount_due": 0, "amount_paid": 0, "amount_remaining": 0},
            **{"pre_payment_credit_notes_amount": 0},
            **{"hosted_invoice_url": None, "number": None, "auto_advance": params.get("auto_advance") == "true"},
        }
        made = self._new(self.invoices, "in", "invoice", values)
        self.event("invoice.created", made)
        return made

    def _new_item(self, params: dict[str, Any]) -> dict[str, Any]:
        invoice = self._of(self.invoices, params["invoice"])
        if invoice["status"] != "draft":
            raise Refusal(400, "This invoice is no longer editable.", code="invoice_not_editable")
        if params["currency"] != invoice["currency"] or params["customer"] != invoice["customer"]:
            raise Refusal(400, "The item does not fit the invoice.")
        item = self._new(self.items, "ii", "invoiceitem", params | {"amount": int(params["amount"])})
        total = sum(each["amount"] for each in self.items.values() if each["invoice"] == invoice["id"])
        invoice |= {"total": total, "subtotal": total, "amount_due": max(total, 0), "amount_remaining": max(total, 0)}
        return item

    def _act(self, invoice: dict[str, Any], act: str, params: dict[str, Any]) -> dict[str, Any]:
        status = invoice["status"]
        match act:
            case "finalize" if status == "draft":
                number = f"F-{next(self._numbers)}"
                url = f"https://invoice.stripe.example/i/{invoice['id']}"
                invoice |= {"status": "open", "number": number, "hosted_invoice_url": url}
                if invoice["total"] <= 0:
                    invoice["status"] = "paid"
            case "void" if status in ("open", "uncollectible"):
                invoice |= {"status": "void"}
            case "pay" if status in ("open", "uncollectible"):
                if params.get("paid_out_of_band") != "true":
                    raise Refusal(402, "There is no payment method.", "card_error")
                self._outside[invoice["id"]] += invoice["amount_remaining"]
                invoice["amount_paid"] += invoice["amount_remaining"]
                invoice |= {"status": "paid", "amount_remaining": 0}
            case "mark_uncollectible" if status == "open":
                invoice |= {"status": "uncollectible"}
            case "finalize" | "void" | "pay" | "mark_uncollectible":
                raise Refusal(400, f"This invoice is {status}.")
            case _:
                raise Refusal(404, "Unrecognized request URL.")
        kinds = {"finalize": "invoice.finalized", "void": "invoice.voided", "pay": "invoice.paid"}
        self.event(kinds.get(act, f"invoice.{act}"), invoice)
        return invoice

    def _attach(self, invoice: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        record = self._of(self.records, params["payment_record"])
        if invoice["status"] != "open" or any(
            row["payment"].get("payment_record") == record["id"] for row in self.invoice_payments.values()
        ):
            raise Refusal(400, "This payment cannot be attached to this invoice.")
        amount = int(record["amount_requested"]["value"])
        if amount > invoice["amount_remaining"]:
            raise Refusal(400, "This payment is more than the invoice asks for.")
        self._outside[invoice["id"]] += amount
        made = self._pay(invoice, amount, {"type": "payment_record", "payment_record": record["id"]})
        self.event("invoice_payment.paid", made)
        return invoice

    def _list_payments(self, params: dict[str, Any]) -> dict[str, Any]:
        wanted = params.get("payment", {})
        rows = [
            row
            for row in self.invoice_payments.values()
            if params.get("invoice", row["invoice"]) == row["invoice"] and wanted.items() <= row["payment"].items()
        ]
        shown = []
        for row in rows:
            record = row["payment"].get("payment_record")
            payment = row["payment"] | ({"payment_record": self.records[record]} if record else {})
            shown.append(row | {"payment": payment})
        return {"object": "list", "url": "/v1/invoice_payments", "has_more": False, "data": shown}

    def _new_meter_event(self, params: dict[str, Any]) -> dict[str, Any]:
        if not any(meter["event_name"] == params["event_name"] for meter in self.meters.values()):
            raise Refusal(400, f"No active meter found matching event name '{params['event_name']}'.")
        at = datetime.fromtimestamp(int(params["timestamp"]), UTC)
        if not self.at - 35 * DAY <= at <= self.at + timedelta(minutes=5):
            raise Refusal(400, "The timestamp must be within the past 35 calendar days or up to 5 minutes ahead.")
        for event in self.meter_events:
            if event["identifier"] == params["identifier"] and self.at - event["_at"] < DAY:
                raise Refusal(400, f"An event already exists with identifier {params['identifier']}.")
        self.meter_events.append(params | {"_at": self.at})
        return {**params, "object": "billing.meter_event", "created": int(self.at.timestamp()), "livemode": False}


def _nested(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Read `a[b][0]=c` as Stripe does."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        *outer, last = re.findall(r"[^\[\]]+", name)
        place = found
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return found
