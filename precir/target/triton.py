"""What a Triton kernel in a compiled program is: its name, and what its tensor cores multiply.

jax-triton puts the kernel into the call itself, its PTX included, compressed with zlib.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import Final

CALL: Final = "triton_kernel_call"
_CONFIG: Final = re.compile(r'backend_config="((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE: Final = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ENTRY: Final = re.compile(rb"\.entry (\w+)")
_WGMMA: Final = re.compile(rb"wgmma\.mma_async\.[\w.]*\.f(?:32|16)\.(\w+)\.(\w+)")
_MMA: Final = re.compile(rb"mma\.sync\.[\w.]*\.(?:f32|f16|s32)\.(\w+)\.(\w+)\.(?:f32|f16|s32)")
_PLAIN: Final = {b"n": 10, b"t": 9, b"r": 13, b"a": 7, b"b": 8, b"f": 12, b"v": 11}
_HLO: Final = {"e4m3": "f8e4m3fn", "e5m2": "f8e5m2"}


@dataclass(frozen=True)
class Triton:
    """A kernel: its name, and the operand formats of its tensor core instructions, if any."""

    name: str
    operands: tuple[str, str] | None


def read_kernel(rest: str) -> Triton:
    """Of a call's text after its operands. What cannot be read is a kernel without a name."""
    found = _CONFIG.search(rest)
    try:
        payload = zlib.decompress(_unescaped(found[1].encode("latin1"))) if found else b""
    except (zlib.error, UnicodeEncodeError):
        payload = b""
    entry = _ENTRY.search(payload)
    core = _WGMMA.search(payload) or _MMA.search(payload)
    formats = [_HLO.get(f.decode(), f.decode()) for f in core.groups()] if core else []
    operands = (formats[0], formats[1]) if formats else None
    return Triton(entry[1].decode() if entry else "kernel", operands)


def _unescaped(text: bytes) -> bytes:
    """The bytes that a C string literal stands for."""

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] in b"01234567":
            return bytes([int(code, 8) & 255])
        if code[:1] == b"x" and len(code) == 3:
            return bytes([int(code[1:], 16)])
        return bytes([_PLAIN[code]]) if code in _PLAIN else code

    return _ESCAPE.sub(one, text)
