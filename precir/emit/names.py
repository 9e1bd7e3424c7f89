"""Names for values: short, from the user's scopes, never a keyword or a name already in use."""

from __future__ import annotations

import builtins
import keyword
import re

_RESERVED = frozenset(keyword.kwlist) | frozenset(dir(builtins)) | {"jax", "jnp", "lax", "np", "i"}
_CALLS = {
    "_where",
    "where",
    "_take",
    "take",
    "_reduce_sum",
    "_einsum",
    "einsum",
    "matmul",
    "dot",
    "clip",
    "_broadcast_arrays",
}

# What a value is called after the op that makes it, where the scope says nothing better.
_NOUNS = {
    "dot_general": "product", "scaled_dot": "product", "add": "sum", "add_any": "sum",
    "sub": "difference", "mul": "scaled", "div": "ratio", "reduce_sum": "total",
    "reduce_max": "peak", "reduce_min": "low", "max": "larger", "min": "smaller", "exp": "exp",
    "log": "log", "rsqrt": "inverse_root", "sqrt": "root", "neg": "negative", "square": "square",
    "integer_pow": "power", "reshape": "shaped", "transpose": "turned",
    "broadcast_in_dim": "spread", "convert_element_type": "cast", "cast": "cast",
    "select_n": "chosen", "eq": "equal", "lt": "below", "gt": "above", "ge": "at_least",
    "le": "at_most", "gather": "rows", "scatter-add": "scattered", "iota": "index",
    "constant": "constant", "tanh": "tanh", "logistic": "gate", "slice": "part",
    "concatenate": "joined", "quantize": "q", "split": "part", "squeeze": "squeezed",
    "put_row": "stack", "row": "layer", "dynamic_slice": "part",
    "scan": "out", "while": "out", "cond": "out", "and": "both",
    "or": "either", "random_split": "keys", "random_wrap": "key", "random_bits": "bits",
    "argmax": "best", "finite_amax": "amax", "delayed_scale": "scale", "record_amax": "history",
    "recent_amax": "seen",
    "dequantize": "wide", "norm_quantize": "norm", "act_quantize": "act", "act_gradients": "act",
    "norm_gradients": "d_norm",
    "quantize_both": "matrix", "current_scale": "scale", "turned_back": "columns",
}  # fmt: skip


def identifier(text: str) -> str:
    """A valid lower-case Python identifier that resembles `text`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    clean = re.sub(r"\W+", "_", words).strip("_").lower()
    clean = re.sub(r"__+", "_", clean) or "x"
    return f"x{clean}" if clean[0].isdigit() else clean


def noun(op: str) -> str:
    return _NOUNS.get(op) or identifier(op)


def module_part(scope: str) -> str:
    """The innermost part of a scope that names a module rather than a helper."""
    for part in reversed(scope.split("/")):
        if part and part not in _CALLS and not part.startswith(("_", "...", "<")):
            return part
    return ""


class Names:
    """Gives out names, each once."""

    def __init__(self, outer: Names | None = None) -> None:
        self._used: dict[str, int] = {}
        self._inside: set[str] = set()  # names of inner functions, which must not hide ours
        self._outer = outer

    def reserve(self, name: str) -> str:
        self._used[name] = 1
        outer = self._outer
        while outer is not None:
            outer._inside.add(name)
            outer = outer._outer
        return name

    def taken(self, name: str) -> bool:
        return name in self._inside or self._seen(name)

    def _seen(self, name: str) -> bool:
        """Whether code here would find the name to mean something."""
        outer = self._outer is not None and self._outer._seen(name)
        return outer or name in _RESERVED or name in self._used

    def exact(self, wish: str) -> str:
        """`wish` as it is, numbered if taken."""
        name, count = wish, 1
        while self.taken(name):
            count += 1
            name = f"{wish}_{count}"
        return self.reserve(name)

    def fresh(self, wish: str) -> str:
        base = identifier(wish)
        if not self.taken(base):
            return self.reserve(base)
        count = max(self._used.get(base, 1), 1) + 1
        while self.taken(f"{base}_{count}"):
            count += 1
        self._used[base] = count
        return self.reserve(f"{base}_{count}")
