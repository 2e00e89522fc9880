"""What the database knows of the key ring: proof that a key is here, and which processes know it. No key material."""

from django.db import models


class KeyCanary(models.Model):
    """A known value made with one key of the ring, kept so that a start can tell that this very key is missing,
    altered or destroyed before anything is written with another."""

    kid = models.CharField(max_length=32, primary_key=True)
    purpose = models.CharField(max_length=16)
    value = models.TextField()
    created_at = models.DateTimeField()
    destroyed_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["kid"]

    def __str__(self) -> str:
        return self.kid


class RingReader(models.Model):
    """A running process and the keys it has read: a key is promoted only when every live process knows it."""

    process = models.CharField(max_length=128, primary_key=True)
    kids = models.JSONField(default=list)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ["process"]

    def __str__(self) -> str:
        return self.process
