from django.db import migrations, models

import licensing.ids


class Migration(migrations.Migration):
    dependencies = [
        ("licensing", "0008_audit_chain"),
    ]

    operations = [
        migrations.CreateModel(
            name="Observation",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("kind", models.CharField(max_length=24)),
                ("subject", models.CharField(max_length=64)),
                ("value", models.CharField(max_length=128)),
                ("slot_at", models.DateTimeField()),
                ("first_at", models.DateTimeField()),
                ("last_at", models.DateTimeField()),
                ("count", models.PositiveIntegerField(default=1)),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="RuleRevision",
            fields=[
                (
                    "id",
                    models.UUIDField(default=licensing.ids.uuid7, editable=False, primary_key=True, serialize=False),
                ),
                ("created_at", models.DateTimeField(editable=False)),
                ("rule", models.CharField(max_length=64)),
                ("number", models.PositiveIntegerField()),
                ("thresholds", models.JSONField(blank=True, default=dict)),
                ("hold", models.BooleanField(default=False)),
                ("reason", models.TextField()),
            ],
            options={
                "ordering": ["rule", "-number"],
                "permissions": [("change_rules", "Can change the thresholds of rules")],
            },
        ),
        migrations.CreateModel(
            name="RuleRun",
            fields=[
                ("rule", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("ran_at", models.DateTimeField(blank=True, null=True)),
                (
                    "looked_at",
                    models.PositiveIntegerField(default=0, help_text="How many objects it judged in its last run."),
                ),
                ("failures", models.PositiveIntegerField(default=0)),
                ("last_error", models.TextField(blank=True)),
            ],
            options={
                "ordering": ["rule"],
            },
        ),
        migrations.AlterModelOptions(
            name="anomaly",
            options={
                "ordering": ["-id"],
                "permissions": [("receive_alerts", "Is told of anomalies by mail")],
                "verbose_name_plural": "anomalies",
            },
        ),
        migrations.RemoveConstraint(
            model_name="hold",
            name="hold_reason_is_known",
        ),
        migrations.AddField(
            model_name="anomaly",
            name="alerted_at",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        # What was found before there were alerts is nobody's news.
        migrations.RunSQL("UPDATE licensing_anomaly SET alerted_at = last_at", migrations.RunSQL.noop),
        migrations.AddField(
            model_name="anomaly",
            name="revision",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="anomaly",
            name="rule_version",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="anomaly",
            name="snoozed_until",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="anomaly",
            name="thresholds",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name="historicalanomaly",
            name="revision",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="historicalanomaly",
            name="rule_version",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="historicalanomaly",
            name="snoozed_until",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="historicalanomaly",
            name="thresholds",
            field=models.JSONField(blank=True, default=dict),
        ),
        migrations.AlterField(
            model_name="anomaly",
            name="state",
            field=models.CharField(
                choices=[
                    ("open", "Open"),
                    ("acknowledged", "Acknowledged"),
                    ("snoozed", "Snoozed"),
                    ("resolved", "Resolved"),
                ],
                default="open",
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="historicalanomaly",
            name="state",
            field=models.CharField(
                choices=[
                    ("open", "Open"),
                    ("acknowledged", "Acknowledged"),
                    ("snoozed", "Snoozed"),
                    ("resolved", "Resolved"),
                ],
                default="open",
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="hold",
            name="reason",
            field=models.CharField(
                choices=[
                    ("unpaid", "Unpaid"),
                    ("abuse", "Abuse"),
                    ("dispute", "Dispute"),
                    ("security", "Security"),
                    ("staff", "staff decision"),
                    ("anomaly", "an anomaly to be looked at"),
                ],
                max_length=16,
            ),
        ),
        migrations.AddIndex(
            model_name="anomaly",
            index=models.Index(condition=models.Q(("alerted_at", None)), fields=["id"], name="anomaly_to_alert"),
        ),
        migrations.AddIndex(
            model_name="anomaly",
            index=models.Index(
                condition=models.Q(("state", "snoozed")), fields=["snoozed_until"], name="anomaly_to_wake"
            ),
        ),
        migrations.AddConstraint(
            model_name="anomaly",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("snoozed_until__isnull", False), ("state", "snoozed")),
                    models.Q(models.Q(("state", "snoozed"), _negated=True), ("snoozed_until", None)),
                    _connector="OR",
                ),
                name="snoozed_anomaly_says_until_when",
            ),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason__in", ["unpaid", "abuse", "dispute", "security", "staff", "anomaly"])),
                name="hold_reason_is_known",
            ),
        ),
        migrations.AddIndex(
            model_name="observation",
            index=models.Index(fields=["kind", "last_at"], name="observation_by_age"),
        ),
        migrations.AddConstraint(
            model_name="observation",
            constraint=models.UniqueConstraint(
                fields=("kind", "subject", "slot_at", "value"), name="one_observation_per_value_and_slot"
            ),
        ),
        migrations.AddConstraint(
            model_name="rulerevision",
            constraint=models.UniqueConstraint(fields=("rule", "number"), name="rule_revision_number_is_unique"),
        ),
        migrations.AddConstraint(
            model_name="rulerevision",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="rule_revision_says_why"
            ),
        ),
        migrations.AddIndex(
            model_name="seat",
            index=models.Index(
                condition=models.Q(("released_at__isnull", False)), fields=["released_at"], name="seat_released"
            ),
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(condition=models.Q(("action", "key.revealed")), fields=["at"], name="audit_of_reveals"),
        ),
        migrations.AddIndex(
            model_name="license",
            index=models.Index(fields=["issued_at"], name="license_by_issue"),
        ),
    ]
