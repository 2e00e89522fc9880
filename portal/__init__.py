"""The edge: composition, the customer's browser, the staff site. Nobody imports it."""

from portal.celery import app as celery_app

__all__ = ["celery_app"]
