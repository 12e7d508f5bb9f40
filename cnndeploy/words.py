"""Words for numbers and names, in messages and tables alike."""

from __future__ import annotations

import os


def counted(count: int | str, noun: str) -> str:
    """Return a number and what it counts: ``1 image``, ``10,000 images``."""
    number = f"{count:,}" if isinstance(count, int) else count
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"


def printable(text: str) -> str:
    """Return text with control characters, and bytes that are no text, as escapes; they may be in any file's name."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def quoted(word: str) -> str:
    """Quote a word as bash and zsh read it, without a control character, or a byte that is no text, in it."""
    import shlex  # not for an app

    if word.isprintable():
        return shlex.quote(word)
    plain = set(range(32, 127)) - set(b"\\'")
    escaped = (chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(escaped)}'"
