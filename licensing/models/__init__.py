"""The rows of licensing: facts and constraints, no rules.

Rules live in the modules one level up; they are the only writers of these tables.
"""

from licensing.models.activations import Activation, RequestNonce
from licensing.models.allowances import Counter, CreditGrant, Reservation
from licensing.models.anomalies import Anomaly, Observation, RuleRevision, RuleRun
from licensing.models.audit import AuditCheckpoint, AuditEntry, AuditLink, AuditWaiting
from licensing.models.catalog import Entitlement, Plan, PlanRevision, Product, Release
from licensing.models.credentials import Credential, IdempotencyRecord
from licensing.models.customers import Customer, Member
from licensing.models.decisions import DecisionRecord
from licensing.models.keyring import KeyCanary, RingReader
from licensing.models.keys import LicenseKey
from licensing.models.leases import Lease, LicenseFile
from licensing.models.licenses import Hold, License, SchemeChange, Term
from licensing.models.outbox import OutboxMessage
from licensing.models.persons import Person
from licensing.models.seats import Seat
from licensing.models.sweeps import JobState, Reminder
from licensing.models.webhooks import WebhookDelivery, WebhookEndpoint

__all__ = [
    "Activation",
    "Anomaly",
    "AuditCheckpoint",
    "AuditEntry",
    "AuditLink",
    "AuditWaiting",
    "Counter",
    "Credential",
    "CreditGrant",
    "Customer",
    "DecisionRecord",
    "Entitlement",
    "Hold",
    "IdempotencyRecord",
    "JobState",
    "KeyCanary",
    "Lease",
    "License",
    "LicenseFile",
    "LicenseKey",
    "Member",
    "Observation",
    "OutboxMessage",
    "Person",
    "Plan",
    "PlanRevision",
    "Product",
    "Release",
    "Reminder",
    "RequestNonce",
    "Reservation",
    "RingReader",
    "RuleRevision",
    "RuleRun",
    "SchemeChange",
    "Seat",
    "Term",
    "WebhookDelivery",
    "WebhookEndpoint",
]
