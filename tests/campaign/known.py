"""What fails today, and why."""

FORMATS_FAILING: dict[str, str] = {}
