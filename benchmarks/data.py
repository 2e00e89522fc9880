"""Fill a fresh database with licenses and print their keys, one a line: `python -m benchmarks.data 10000`."""

import sys

import django

django.setup()

from django.utils import timezone  # noqa: E402

from licensing import crypto, keys  # noqa: E402
from licensing.keyformat import written  # noqa: E402
from licensing.models import LicenseKey  # noqa: E402
from portal.management.commands.seed_demo import add_licenses, seed  # noqa: E402

if __name__ == "__main__":
    at = timezone.now()
    seed(at)
    for _ in add_licenses(int(sys.argv[1]), at):
        pass
    for row in LicenseKey.objects.filter(license__customer__code="acme", license__issued_at=at).iterator():
        print(written(crypto.unseal(row.sealed, keys.place_of(row)).decode()))
