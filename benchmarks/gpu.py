"""Every kernel checked and timed on a GPU, then whole train steps beside their peers: one command.

    python benchmarks/gpu.py                         under ten minutes; needs an NVIDIA GPU
    python benchmarks/gpu.py --wheel wheels/         packages that the machine lacks: jax-triton
    python benchmarks/gpu.py --only "time product"   the jobs with this in their name
    python benchmarks/gpu.py --choice                measures kernels/choice.json anew instead
    python benchmarks/gpu.py --tiny                  all of it on a CPU: tiny, and without times

First every kernel is checked at odd sizes against its reference on the CPU (gpu_kernels.py), then
the most important is timed first: quantize, products, a step of the shape of a 7B model
(gpu_steps.py), the rest. No job is started that may not end within --minutes; the table says which
were left out. How time is told is in gpu_clock.py.

The jobs run in a process of their own (gpu_worker.py). A kernel that fails has a row that says so;
one that takes the process with it, or hangs, has such a row too, and the others go on without it.

*of floor* is the time that the bytes take at the bandwidth of a copy, or the multiplications at
the peak, whichever is longer, over the time taken. Bandwidth and bfloat16 peak are measured in the
same run, the FP8 peak is the datasheet's (kernels/choice.json).
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_table import CHOICE, Found, choice_table, laid_out, markdown, show, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.md"
PATIENCE = 150  # seconds without a word, after which a worker hangs
GRACE = 30  # seconds past the end
CRASHES = 8  # after which it is given up

# --- the worker -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace, found: Found) -> Iterator[str]:
    """Run all jobs, however many workers that takes; yields what is going on."""
    until = time.time() + 60 * options.minutes
    without: list[tuple[str, str]] = []
    start = 0
    with tempfile.TemporaryDirectory() as folder:
        environ = _environ(options, Path(folder))
        for _ in range(CRASHES + 1):
            request = {
                "tiny": options.tiny, "choice": options.choice, "plan": options.plan,
                "only": options.only, "until": until, "from": start, "without": without,
            }  # fmt: skip
            job = contender = ""
            ended = "went on past the end" if time.time() > until else ""
            with open(Path(folder, "log"), "w+") as log:
                for message in _worker(request, environ, log, until + GRACE):
                    found.hear(message)
                    match message:
                        case {"environment": environment}:
                            refuse(environment, options)
                        case {"begin": start, "name": job}:
                            contender = ""
                            yield job
                        case {"at": contender}:
                            pass
                        case {"end": _}:
                            start, job = start + 1, ""
                        case {"ended": ended}:
                            pass
                if not ended:
                    return
                log.seek(0)
                said = log.read().strip().splitlines()[-3:]
            yield "\n".join([f"the worker {ended}", *said])
            if not job:
                raise SystemExit("\n".join([f"error: the worker {ended} before any job", *said]))
            without.append((job, contender))
            found.add(
                {
                    "section": job,
                    "name": contender,
                    "size": "",
                    "failed": f"it {ended}: {said[-1:]}",
                }
            )
            if not contender:
                start += 1
            if time.time() > until:
                found.left += found.jobs[start + 1 :]
                return


def _environ(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """That of the worker: precir from this tree, the wheels unpacked beside it."""
    paths = [str(ROOT)]
    for wheel in options.wheel:
        files = [wheel] if wheel.suffix == ".whl" else sorted(wheel.glob("*.whl"))
        for file in files:
            zipfile.ZipFile(file).extractall(folder / file.stem)
            paths.append(str(folder / file.stem))
        paths += [] if files else [str(wheel)]
    paths += [p for p in [os.environ.get("PYTHONPATH")] if p]
    defaults = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "TF_CPP_MIN_LOG_LEVEL": "1"}
    if not options.tiny:  # a worker that starts over has its programs compiled
        defaults["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
    fixed = {"PYTHONPATH": os.pathsep.join(paths)}
    if options.tiny or options.plan:
        fixed |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    return defaults | dict(os.environ) | fixed


def _worker(
    request: dict[str, Any], environ: dict[str, str], log: Any, end: float
) -> Iterator[dict[str, Any]]:
    """What one worker says; last, unless it is done, {"ended": how}."""
    script = str(Path(__file__).with_name("gpu_worker.py"))
    process = subprocess.Popen(
        [sys.executable, script, json.dumps(request)],
        env=environ, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    try:
        while line := lines.get(timeout=max(1.0, min(PATIENCE, end - time.time()))):
            yield json.loads(line)
        if process.wait():
            yield {"ended": f"ended with code {process.returncode}"}
    except queue.Empty:
        hung = time.time() < end
        yield {"ended": f"said nothing for {PATIENCE} s" if hung else "went on past the end"}
    finally:
        process.kill()
        process.wait()


def refuse(environment: dict[str, str], options: argparse.Namespace) -> None:
    """Stop where there is nothing to measure."""
    if options.tiny or options.plan:
        return
    if environment["platform"] not in ("gpu", "cuda"):
        raise SystemExit(
            f"error: no GPU here (JAX runs on {environment['platform']}), so nothing was measured "
            "and no results were written; --tiny runs all of it on a CPU"
        )
    if "not installed" in (environment["triton"], environment["jax-triton"]):
        raise SystemExit(
            "error: no kernel runs without triton and jax-triton: pip install 'jax-triton>=0.3.1,"
            "<0.4', or give a folder with its wheel: --wheel PATH"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for, print one table, write the results."""
    parser = argparse.ArgumentParser(description="Kernels and train steps on a GPU.")
    parser.add_argument("--minutes", type=float, default=9.0, help="no job starts too late (9)")
    parser.add_argument("--wheel", type=Path, nargs="+", default=[], help="wheels, or folders")
    parser.add_argument("--only", default="", metavar="TEXT", help="jobs with this in their name")
    parser.add_argument("--choice", action="store_true", help="measure kernels/choice.json")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, without times")
    parser.add_argument("--plan", action="store_true", help="write what a run would measure")
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args(argv)
    usual = None if options.tiny or options.only else CHOICE if options.choice else RESULTS
    out, found, begun = options.out or usual, Found(), time.time()
    for what in measure(options, found):
        print(f"{time.time() - begun:5.0f} s  {what}", file=sys.stderr, flush=True)
        if out and not options.choice:  # what there is, should this be cut off
            out.write_text(markdown(found, options))
    if out and options.choice and not options.tiny:
        out.write_text(laid_out(choice_table(found, json.loads(CHOICE.read_text()))))
    elif out and not options.choice:
        out.write_text(markdown(found, options))
    if found.left:
        print(f"left out: {'; '.join(found.left)}")
    rows = table(found)
    show(rows)
    sys.exit(any(row[-1] in ("WRONG", "FAILED") for row in rows))


if __name__ == "__main__":
    main()
