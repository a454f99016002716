"""What colours mean in pictures, on light and dark alike."""

from villani.work.records import EstimateRecord

POSITIVE, NEGATIVE, UNRESOLVED = "#3b82f6", "#e4572e", "#8b93a1"
EXACT, TOTAL, REMAINDER = "#a78bfa", "#10b981", "#f59e0b"
STATUSES = {
    "certified": TOTAL, "statistical": POSITIVE, "estimated": REMAINDER, "as-claimed": UNRESOLVED, "refuted": NEGATIVE,
}  # fmt: skip


def sign_colour(estimate: EstimateRecord) -> str:
    """Of an estimate: by its sign, or none where its interval holds 0."""
    low, high = estimate.interval
    if low <= 0 <= high:
        return UNRESOLVED
    return POSITIVE if low > 0 else NEGATIVE
