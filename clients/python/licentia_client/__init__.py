"""A client for Licentia servers: asks, verifies, and says what it was told."""

from licentia_client.answers import NotBelieved, Refused, ServerAway
from licentia_client.client import Client, Seat, Verdict
from licentia_client.offline import BorrowedLease, FileRefused, LicenseFile, Machine
from licentia_client.signed import InstallationCopied, Lease, SignedClient, Standing

__all__ = [
    "BorrowedLease",
    "Client",
    "FileRefused",
    "InstallationCopied",
    "Lease",
    "LicenseFile",
    "Machine",
    "NotBelieved",
    "Refused",
    "Seat",
    "ServerAway",
    "SignedClient",
    "Standing",
    "Verdict",
]
