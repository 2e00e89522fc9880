"""A plan revision can say after how long a machine that is not seen is let go."""

import datetime

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("licensing", "0009_anomaly_rules"),
    ]

    operations = [
        migrations.AddField(
            model_name="historicalplanrevision",
            name="activation_dead_after",
            field=models.DurationField(
                blank=True,
                help_text="A machine not seen for this long is let go, unless it works offline. Empty: never.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="planrevision",
            name="activation_dead_after",
            field=models.DurationField(
                blank=True,
                help_text="A machine not seen for this long is let go, unless it works offline. Empty: never.",
                null=True,
            ),
        ),
        migrations.AddConstraint(
            model_name="planrevision",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("activation_dead_after", None),
                    ("activation_dead_after__gt", datetime.timedelta(0)),
                    _connector="OR",
                ),
                name="a_machine_is_not_dead_at_once",
            ),
        ),
    ]
