"""Rules: what each is suspicious of, and by which thresholds. See `register`; ours stand in `known`."""

from licensing.rules import known
from licensing.rules.register import (
    OVERLAP,
    SILENT_AFTER,
    Case,
    Current,
    Facts,
    Look,
    Rule,
    RuleChangedMeanwhile,
    Standing,
    Subject,
    Thresholds,
    all_current,
    change,
    current,
    every,
    get,
    look_by,
    looks,
    register,
)

register(*known.RULES)

__all__ = [
    "OVERLAP",
    "SILENT_AFTER",
    "Case",
    "Current",
    "Facts",
    "Look",
    "Rule",
    "RuleChangedMeanwhile",
    "Standing",
    "Subject",
    "Thresholds",
    "all_current",
    "change",
    "current",
    "every",
    "get",
    "look_by",
    "looks",
    "register",
]
