"""A client for Licentia servers: asks, verifies, and says what it was told."""

from licentia_client.client import Client, NotBelieved, Refused, Seat, Verdict

__all__ = ["Client", "NotBelieved", "Refused", "Seat", "Verdict"]
