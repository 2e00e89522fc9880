"""The product's settings with the measured twins beside its URLs."""

from portal.settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.urls"
