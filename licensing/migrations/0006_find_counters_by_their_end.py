from django.db import migrations, models


class Migration(migrations.Migration):
    """Find the windows with an allowance that end after an instant: for what follows a count and was left undone."""

    dependencies = [
        ("licensing", "0005_room_for_counters"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="counter",
            index=models.Index(
                condition=models.Q(("allowance__isnull", False)),
                fields=["ends_at", "license", "meter"],
                name="counter_by_end",
            ),
        ),
    ]
