"""Words that show whose text is whose."""

from __future__ import annotations

_WORDS = """
apple bridge candle dragon eagle forest garden hammer island jacket kettle ladle mirror needle
orange pencil queen rabbit saddle tiger umbrella violin window yellow zebra anchor basket camera
desert engine feather guitar helmet insect jungle kitchen ladder market napkin ocean pepper quartz
ribbon silver tunnel uncle valley wallet xenon yogurt button carpet dinner elbow finger ginger
harbor iron jelly kite lantern magnet nest oyster
"""
CANARIES = tuple(_WORDS.split())


def foreign(text: str, own: str) -> list[str]:
    """Canaries in a text that are not its own."""
    return [word for word in CANARIES if word in text.lower() and word != own]
