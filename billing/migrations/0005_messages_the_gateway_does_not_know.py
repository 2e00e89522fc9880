from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0004_money_taken_back"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="gatewayevent",
            name="event_outcome_is_known",
        ),
        migrations.AlterField(
            model_name="gatewayevent",
            name="outcome",
            field=models.CharField(
                choices=[
                    ("applied", "Applied"),
                    ("ignored", "nothing of ours"),
                    ("unknown", "not known at the gateway"),
                ],
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="gatewayevent",
            constraint=models.CheckConstraint(
                condition=models.Q(("outcome__in", ["applied", "ignored", "unknown"])), name="event_outcome_is_known"
            ),
        ),
    ]
