"""What the gateway took back or credited, and how much of what came past it the gateway was told."""

import django.db.models.deletion
from django.db import migrations, models

import licensing.ids


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0003_credit_of_earlier_statements"),
    ]

    operations = [
        migrations.AddField(
            model_name="gatewayinvoice",
            name="told_minor",
            field=models.BigIntegerField(default=0, help_text="How much of what came past the gateway it knows of."),
        ),
        migrations.CreateModel(
            name="Reversal",
            fields=[
                (
                    "id",
                    models.UUIDField(default=licensing.ids.uuid7, editable=False, primary_key=True, serialize=False),
                ),
                ("created_at", models.DateTimeField(editable=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[("refund", "Refund"), ("credit_note", "credit note"), ("dispute", "Dispute")],
                        max_length=16,
                    ),
                ),
                ("reference", models.CharField(max_length=255, unique=True)),
                ("returned_minor", models.BigIntegerField(default=0)),
                ("credited_minor", models.BigIntegerField(default=0)),
                ("stands", models.BooleanField(default=True)),
                ("status", models.CharField(blank=True, max_length=64)),
                (
                    "statement",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="reversals", to="billing.statement"
                    ),
                ),
            ],
            options={
                "ordering": ["created_at"],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("credited_minor__gte", 0), ("returned_minor__gte", 0)),
                        name="reversal_is_not_negative",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["refund", "credit_note", "dispute"])),
                        name="reversal_kind_is_known",
                    ),
                ],
            },
        ),
    ]
