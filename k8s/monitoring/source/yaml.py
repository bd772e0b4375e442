"""Writes the small part of YAML that rules need: maps, lists, text and numbers. Long text becomes a block."""

import json
import re

WIDTH = 140
# Text that YAML would not read as the same text without quotes.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*( [A-Za-z0-9_./(),%-]+)*\Z")
_WORDS = {"true", "false", "yes", "no", "on", "off", "null"}


def _scalar(value):
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if _PLAIN.match(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _lines(value, indent):
    pad = " " * indent
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _entry(f"{pad}{key}:", inner, indent)
    else:
        for inner in value:
            if isinstance(inner, dict) and inner:
                first, *rest = _lines(inner, indent + 2)
                yield f"{pad}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{pad}- {_scalar(inner)}"


def _entry(head, value, indent):
    if isinstance(value, (dict, list)):
        if not value:
            yield f"{head} {json.dumps(value)}"
            return
        yield head
        yield from _lines(value, indent + 2)
    elif isinstance(value, str) and "\n" in value:
        yield f"{head} |-"
        yield from (f"{' ' * (indent + 2)}{line}".rstrip() for line in value.split("\n"))
    elif isinstance(value, str) and len(head) + len(value) + 3 > WIDTH and "  " not in value and not value.startswith(" "):
        # Folded: a line break stands for one space.
        yield f"{head} >-"
        line = " " * (indent + 2)
        for word in value.split(" "):
            if line.strip() and len(line) + len(word) + 1 > WIDTH:
                yield line
                line = " " * (indent + 2)
            line += word if not line.strip() else f" {word}"
        yield line
    else:
        yield f"{head} {_scalar(value)}"


def text(value, heading):
    """A document; `heading` becomes comments."""
    return "".join(f"# {line}\n" for line in heading) + "\n".join(_lines(value, 0)) + "\n"
