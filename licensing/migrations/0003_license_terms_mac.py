"""Give every license the proof of its terms; those that exist are taken as they are."""

from typing import Any

from django.db import migrations, models

from licensing import crypto, proofs

BATCH = 1_000
TERMS = (
    "id",
    "customer_id",
    "product_id",
    "plan_revision_id",
    "scheme",
    "starts_at",
    "expires_at",
    "grace_until",
    "maintenance_until",
    "seat_limit",
    "activation_limit",
)


def seal(apps: Any, schema_editor: Any) -> None:
    """Prove what is there. Needs the key ring, but not where there is no license yet."""
    licenses = apps.get_model("licensing", "License").objects.using(schema_editor.connection.alias)
    holds = apps.get_model("licensing", "Hold").objects.using(schema_editor.connection.alias)
    while rows := list(licenses.filter(terms_mac=None).order_by("pk")[:BATCH]):
        held: dict[Any, list[str]] = {}
        for license_id, reason in holds.filter(lifted_at=None, license__in=rows).values_list("license_id", "reason"):
            held.setdefault(license_id, []).append(reason)
        for row in rows:
            said = proofs.said_of(
                holds=held.get(row.pk, []),
                issued=row.issued_at is not None,
                revoked=row.revoked_at is not None,
                **{name: getattr(row, name) for name in TERMS},
            )
            row.terms_kid, row.terms_mac = crypto.digest(said, kind=proofs.KIND)
        licenses.bulk_update(rows, ["terms_kid", "terms_mac"])


class Migration(migrations.Migration):
    dependencies = [
        ("licensing", "0002_signed_clients_leases_key_ring"),
    ]

    operations = [
        migrations.AddField(
            model_name="license",
            name="terms_kid",
            field=models.CharField(blank=True, default="", editable=False, max_length=32),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="license",
            name="terms_mac",
            field=models.BinaryField(blank=True, max_length=32, null=True),
        ),
        migrations.RunPython(seal, migrations.RunPython.noop),
    ]
