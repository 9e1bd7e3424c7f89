"""The passes: one transformation or analysis of the graph per file."""

if __name__ != "precir.passes":
    raise ImportError(f"import precir.passes, not {__name__}: it would be a second copy")
