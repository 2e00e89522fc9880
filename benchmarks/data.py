"""Fill a fresh database with licenses and machines: `python -m benchmarks.data 10000`.

Prints JSON: the license keys, machines that sign (id and private key), and a credential. `grow 1000000` adds so many
licenses that nobody asks for.
"""

import json
import secrets
import sys

import django

django.setup()

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from django.db import connection  # noqa: E402
from django.utils import timezone  # noqa: E402

from licensing import activations, audit, credentials, crypto, keys  # noqa: E402
from licensing.keyformat import written  # noqa: E402
from licensing.models import License, LicenseKey  # noqa: E402
from portal.management.commands.seed_demo import add_licenses, seed  # noqa: E402

MACHINES = 200


def fill(count: int) -> dict[str, object]:
    """Make the licenses; return what the load needs of them."""
    at, by = timezone.now(), audit.system("benchmarks")
    seed(at)
    for _ in add_licenses(count, at):
        pass
    rows = LicenseKey.objects.filter(license__customer__code="acme", license__issued_at=at).select_related("license")
    shown = [(row, written(crypto.unseal(row.sealed, keys.place_of(row)).decode())) for row in rows.iterator()]
    machines = []
    for row, _ in shown[:MACHINES]:
        private = Ed25519PrivateKey.generate()
        made = activations.activate(
            license=row.license,
            fingerprint=f"machine-{secrets.token_hex(8)}",
            by=by,
            at=at,
            public_key=private.public_key().public_bytes_raw(),
        )
        machines.append((str(made.activation.pk), private.private_bytes_raw().hex()))
    _, secret = credentials.create(name="bench", scopes=["licenses:write", "licenses:read"], by=by, at=at)
    licenses = [(str(row.license_id), key) for row, key in shown[MACHINES : MACHINES + 100]]
    return {"keys": [key for _, key in shown], "machines": machines, "credential": secret, "licenses": licenses}


def grow(count: int) -> None:
    """Add licenses with keys like one that is there, by the database alone."""
    like = License.objects.filter(issued_at__isnull=False, holds=None, activations=None).order_by("-id")[0]
    own = [field.column for field in License._meta.concrete_fields if field.name != "id"]
    names = ", ".join(f'"{name}"' for name in own)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO licensing_license (id, {names}) SELECT gen_random_uuid(), {names}"
            " FROM licensing_license, generate_series(1, %s) WHERE id = %s",
            [count, like.pk],
        )
        cursor.execute(
            "INSERT INTO licensing_licensekey (id, created_at, license_id, digest_kid, digest, sealed, last5)"
            " SELECT gen_random_uuid(), now(), l.id, 'none', decode(md5(l.id::text) || md5('x' || l.id::text), 'hex'),"
            " 'v1.none', '00000' FROM licensing_license l"
            " WHERE NOT EXISTS (SELECT 1 FROM licensing_licensekey k WHERE k.license_id = l.id)"
            " AND l.issued_at IS NOT NULL"
        )
        cursor.execute("ANALYZE")


if __name__ == "__main__":
    if sys.argv[1] == "grow":
        grow(int(sys.argv[2]))
    else:
        print(json.dumps(fill(int(sys.argv[1]))))
