"""YAML of strangers.

libyaml's composer calls itself for each level, and overflows the stack of the process; aliases of aliases grow without
end. And of a key that a mapping has twice, all parsers of PyYAML silently take the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

_DEEPEST = 50
_MOST_BY_ALIASES = 1_000_000


def load(text: str, *, texts_only: bool = False) -> Any:
    """The data in a YAML text; with `texts_only` each value is a text.

    yaml.YAMLError, also for what is nested deeply or stands for too much, and for repeated keys; ValueError for numbers
    and dates that are none.
    """
    name = "BaseLoader" if texts_only else "SafeLoader"
    loader = getattr(yaml, f"C{name}", getattr(yaml, name))
    _refuse_bombs(yaml.parse(text, loader))
    _refuse_repetition(yaml.parse(text, loader))
    return yaml.load(text, loader)  # noqa: S506 - one of the two safe ones


def _refuse_bombs(events: Iterable[yaml.Event]) -> None:
    sizes: dict[str, int] = {}
    begun: list[tuple[str | None, int]] = []
    added = 0
    for count, event in enumerate(events, 1):
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((event.anchor, count + added))
            if len(begun) > _DEEPEST:
                raise yaml.YAMLError(f"nested more than {_DEEPEST} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = begun.pop()
            if anchor:
                sizes[anchor] = count + added - start
        elif isinstance(event, yaml.AliasEvent):
            added += sizes.get(str(event.anchor), 1)
            if added > _MOST_BY_ALIASES:
                raise yaml.YAMLError(f"its aliases stand for more than {_MOST_BY_ALIASES} values; write them out")


def _refuse_repetition(events: Iterable[yaml.Event]) -> None:
    # For each collection that is open: the keys so far, and whether a key is next; None for a list.
    begun: list[tuple[set[str], bool] | None] = []
    anchors: dict[str, str] = {}
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            begun.pop()
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        value = anchors.get(str(event.anchor)) if isinstance(event, yaml.AliasEvent) else getattr(event, "value", None)
        if event.anchor and isinstance(event, yaml.ScalarEvent):
            anchors[event.anchor] = event.value
        if begun and (top := begun[-1]):
            seen, is_key = top
            if is_key and value is not None:
                if value in seen:
                    line = event.start_mark.line + 1 if event.start_mark else 0
                    raise yaml.YAMLError(f"line {line}: the key {value!r:.80} is there twice in one mapping")
                seen.add(value)
            begun[-1] = seen, not is_key
        if isinstance(event, yaml.CollectionStartEvent):
            begun.append((set(), True) if isinstance(event, yaml.MappingStartEvent) else None)
