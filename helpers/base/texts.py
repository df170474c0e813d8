"""What a text is: cleaned, compared, refused, shown."""

import re
import unicodedata

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def clean(text: str) -> str:
    """`text` with `<br />` tags and runs of white space turned into single spaces."""
    return " ".join(_BREAK.sub(" ", text).split())


def text_key(text: str) -> str:
    """`text` case-folded with white space collapsed: two texts with one key are duplicates."""
    return " ".join(text.split()).casefold()


def text_problem(text: object) -> str | None:
    """Why no tokenizer can read `text`, as a message goes on after naming it; None where one can.

    Whatever takes texts from outside asks here. Only strings can be read, and of these all but lone surrogates: halves
    of a character, as cutting an emoji in two leaves them.
    """
    if not isinstance(text, str):
        return f"is {shortened(repr(text))} ({type(text).__name__}), not a string."
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"has half a character, the lone surrogate {text[error.start]!r}, at {error.start:,}. Remove it: "
            "text.encode(errors='ignore').decode()"
        )
    return None


def is_blank(text: str) -> bool:
    """Whether nothing of `text` is to be seen: white space, control and format characters alone."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def shortened(text: str, length: int = 60) -> str:
    """`text` as a message shows it, at most `length` characters."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
