"""For how long usage may come late or early, and how long its ids are remembered. One place for all of it."""

from datetime import timedelta

ACCEPTED_BACK = timedelta(days=35)
ACCEPTED_AHEAD = timedelta(minutes=5)
# An id is forgotten when its event is this old: sent again it would then be refused for its time.
REMEMBERED = ACCEPTED_BACK + timedelta(days=35)
# The row of licensing.models.JobState whose watermark says up to when events are archived.
ARCHIVE = "usage-archive"
