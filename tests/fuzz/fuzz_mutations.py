"""Broken and hostile files, made of good ones."""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence

MOST = 1 << 16  # bytes of an input
NUMBERS = (-1, 0, 1, 3, 127, 255, 256, 32767, 65535, 10**6, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 10**18, 2**63, 2**64)
WORDS = ("nan", "inf", "-inf", "1e400", "0x10", "1_000", "٣", "-0", "1.5.2", "99999999999999999999999", "9" * 5000)
PATHS = ("../../../../etc/passwd", "/etc/passwd", "..\\..\\secret", "C:\\secret", "C:secret", "\\\\host\\share", "..")
PATHS += (".", "/dev/zero", "a" * 300, "a\0b", "~/x", "file:///etc/passwd", "CON", "\u202e", "é" * 150)
CODE = "__import__('os').system('touch fuzzed')"
YAML = (
    f"!!python/object/apply:os.system ['{CODE}']",
    "!!python/name:os.system",
    "!!binary 'a'",
    "!!set {a, b}",
    "&a [*a, *a]",
    "&a {x: *a}",
    "a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\n"
    "g: &g [*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g]\n",
    "<<: *base",
    "${oc.env:HOME}",
    "${train.epochs}",
    "${run}",
    "${",
    "???",
    "null",
    "{}",
    "[]",
    "2001-01-01",
    "1:30:00",
    "yes",
    "? x\n: y",
    "---\n",
    "%YAML 9.9\n",
    "\t",
)
JSON = (
    '{"a":1,"a":2}',
    "null",
    "true",
    "NaN",
    "1e999",
    '""',
    '"\\ud800"',
    '{"__class__": "x"}',
    "[]",
    "{}",
    "-",
    '"a/b"',
)
PICKLE = (
    b"cos\nsystem\n(S'touch fuzzed'\ntR.",
    b"cbuiltins\neval\n(V" + CODE.encode() + b"\ntR.",
    b"c__builtin__\ngetattr\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
    b"r\xff\xff\xff\xff",  # memo of 2**32 places
    b"p999999999\n",
    b"\x8d" + struct.pack("<Q", 10**18),
    b"\x8e" + struct.pack("<Q", 10**9),
    b"\x96" + struct.pack("<Q", 10**9),
    b"\x95" + struct.pack("<Q", 10**18),
    b"B\xff\xff\xff\x7f",
    b"\x8b\x00\x00\x00\x7f",
    b"(" * 3000,
    b"]q\x20(h\x20h\x20e",
    b"2",
    b"0",
    b"b",
    b"\x81",
    b"\x92",
    b"u",
    b"Q",
    b"\x82\x01",
    b"\x97\x98",
    b"o",
    b"ios\nsystem\n",
    b".",
)
Mutate = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def mutate(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """``content`` with one to four things changed; of a zip, often a member or its name.

    Args:
        draw: the only source of randomness.
        content: a file.
        others: more files of its kind, to take pieces of.
    """
    if content[:2] == b"PK" and draw.random() < 0.7:
        return _mutate_zip(draw, content, others)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 4))):
        change = draw.choice(_TEXT if _is_text(content) and draw.random() < 0.8 else _BYTES)
        content = change(draw, content, others)[:MOST]
    return content


def _is_text(content: bytes) -> bool:
    return b"\0" not in content


def _mutate_zip(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A whole zip again, so that no checksum gives the change away."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    except Exception:
        return mutate(draw, content[1:], others) if content else content
    out = io.BytesIO()
    chosen = draw.randrange(len(members)) if members else -1
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for i, (name, data, kind) in enumerate(members):
            if i == chosen:
                what = draw.random()
                if what < 0.15:
                    name = draw.choice((*PATHS, name + "/", "", name.swapcase(), name.rpartition("/")[2]))
                elif what < 0.2:
                    continue
                elif what < 0.25:
                    data = bytes(draw.choice((0, 10**6, 3 * 10**6)))
                else:
                    data = mutate(draw, data, [data, *(other for _, other, _ in members)])
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "x")
            info.compress_type = draw.choice((kind, kind, kind, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
            if i == chosen and draw.random() < 0.05:
                info.external_attr = draw.choice((0o120777, 0o010666, 0o020666)) << 16
            archive.writestr(info, data)
            if draw.random() < 0.03:
                archive.writestr(info, data)
    return out.getvalue()


# Bytes


def _flip(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if out:
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def _set_number(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    width = draw.choice((1, 2, 4, 4, 8, 8))
    number = draw.choice(NUMBERS) % 256**width
    at = draw.randrange(len(content) + 1)
    if draw.random() < 0.5:
        at -= at % width
    return content[:at] + number.to_bytes(width, draw.choice(("little", "little", "big"))) + content[at + width :]


def _cut(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at]


def _chunk(draw: random.Random, content: bytes) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 2, 4, 8, 50, 400)))


def _remove(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _chunk(draw, content)
    return content[:start] + content[end:]


def _repeat(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _chunk(draw, content)
    return content[:end] + content[start:end] * draw.choice((1, 1, 2, 100)) + content[end:]


def _splice(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    if draw.random() < 0.5:
        return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other) + 1) :]
    start, end = _chunk(draw, other)
    at = draw.randrange(len(content) + 1)
    return content[:at] + other[start:end] + content[at + (end - start if draw.random() < 0.7 else 0) :]


def _opcode(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _chunk(draw, content)
    return content[:start] + draw.choice(PICKLE) + content[draw.choice((start, end)) :]


def _garbage(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _chunk(draw, content)
    return content[:start] + draw.randbytes(draw.choice((1, 4, 30))) + content[end:]


# Text


def _token(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    """A word of it replaced; numbers of a header come first, and are chosen more often."""
    words = list(re.finditer(rb"[^\s,:\[\]{}\"'=]+", content[: draw.choice((200, 1000, MOST))]))
    if not words:
        return content
    word = draw.choice(words)
    kinds = [map(str, NUMBERS), WORDS, PATHS, YAML, JSON, [w[0].decode("latin1") for w in words], [CODE, ""]]
    weights = (6, 2, 2, 2, 2, 3, 1)
    new = draw.choice(list(draw.choices(kinds, weights)[0]))
    return content[: word.start()] + new.encode("utf-8", "replace") + content[word.end() :]


def _line(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    lines, more = content.splitlines(keepends=True), draw.choice(others).splitlines(keepends=True)
    if not lines or not more:
        return content
    at, what = draw.randrange(len(lines)), draw.randrange(5)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines[at:at] = [lines[at]] * draw.choice((1, 1, 3, 300))
    elif what == 2:
        lines[at] = draw.choice(more)
    elif what == 3:
        lines.insert(at, draw.choice(more))
    else:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return b"".join(lines)


def _nest(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    opening, closing = draw.choice((("[", "]"), ("{a: ", "}"), ('{"a":', "}"), ("(", ")"), ("- ", ""), ("-", "")))
    start, end = _chunk(draw, content)
    depth = draw.choice((10, 100, 400, 3000))
    return (
        content[:start] + (opening * depth).encode() + content[start:end] + (closing * depth).encode() + content[end:]
    )


def _insert(draw: random.Random, content: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _chunk(draw, content)
    new = draw.choice((*YAML, *JSON, *PATHS, *WORDS, " ", "\n", ",", '"', "'", "#", "\ufeff", "é", "\x85"))
    return content[:start] + new.encode("utf-8", "replace") + content[draw.choice((start, end)) :]


_BYTES: list[Mutate] = [_flip, _flip, _set_number, _set_number, _cut, _remove, _repeat, _splice, _opcode, _garbage]
_TEXT: list[Mutate] = [_token, _token, _token, _line, _line, _nest, _insert, _flip, _cut, _splice, _repeat, _remove]
