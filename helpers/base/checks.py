"""What settings may be."""


def require(owner: object, field: str, valid: bool, expected: str) -> None:
    """Raises ValueError, naming the field of `owner` and its value, unless that is `valid`."""
    if not valid:
        value = repr(getattr(owner, field))[:200]
        raise ValueError(f"{type(owner).__name__}.{field} is {value}; it must be {expected}.")


def is_count(value: object, least: int = 1) -> bool:
    """Whether `value` is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_folder_name(value: object) -> bool:
    """Whether `value` can name a file or folder: one part of a path that every system takes."""
    return (
        isinstance(value, str) and value.strip(" .") == value != "" and value.isprintable()
        and len(value) <= 160 and not set(value) & set('/\\:*?"<>|')
    )  # fmt: skip
