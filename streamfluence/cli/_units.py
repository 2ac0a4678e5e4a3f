"""Numbers as a person reads them."""


def duration(seconds: float) -> str:
    """Return ``1:02:03``, ``2:03`` or ``3.4 s``."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
