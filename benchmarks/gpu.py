"""Every kernel checked and timed on a GPU, then whole train steps beside their peers: one command.

    python benchmarks/gpu.py                         under ten minutes; needs an NVIDIA GPU
    python benchmarks/gpu.py --wheel wheels/         packages that the machine lacks: jax-triton
    python benchmarks/gpu.py --only "time product"   the jobs with this in their name
    python benchmarks/gpu.py --choice --minutes 20   measures kernels/choice.json anew instead
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_table import CHOICE, Found, choice_table, laid_out, markdown, show, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.md"
WORKER = ROOT / "benchmarks" / "gpu_worker.py"
PATIENCE = 240  # seconds without a word, after which a worker hangs
GRACE = 30  # seconds past the end
CRASHES = 8  # after which it is given up

# --- the worker -----------------------------------------------------------------------------------


@dataclass
class Course:
    """Where a worker is: at which job, by number and name, who runs, and how it ended badly."""

    number: int = 0
    job: str = ""
    contender: str = ""
    ended: str = ""

    def follow(self, message: dict[str, Any]) -> None:
        """Keep what one line says of that."""
        match message:
            case {"begin": number, "name": job}:
                self.number, self.job, self.contender = number, job, ""
            case {"at": contender}:
                self.contender = contender
            case {"end": number}:
                self.number, self.job = number + 1, ""
            case {"ended": how}:
                self.ended = how


def measure(options: argparse.Namespace, found: Found) -> Iterator[str]:
    """Run all jobs, however many workers that takes; yields what is going on."""
    until = time.time() + 60 * options.minutes
    without: list[tuple[str, str]] = []
    course = Course()
    with tempfile.TemporaryDirectory() as folder:
        environ = _environ(options, Path(folder))
        while len(without) <= CRASHES and time.time() < until:
            request = {name: getattr(options, name) for name in ("tiny", "choice", "plan", "only")}
            request |= {"until": until, "from": course.number, "without": without}
            course = Course(course.number)
            with open(Path(folder, "log"), "w+") as log:
                for message in _worker(request, environ, log, until + GRACE):
                    found.hear(message)
                    course.follow(message)
                    if "environment" in message:
                        refuse(message["environment"], options)
                    if "begin" in message:
                        yield course.job
                if not course.ended:
                    return
                log.seek(0)
                said = log.read().strip().splitlines()[-3:]
            yield "\n".join([f"the worker {course.ended}", *said])
            if not course.job:
                text = [f"error: the worker {course.ended} between jobs", *said]
                raise SystemExit("\n".join(text))
            _blame(course, said, found)
            without.append((course.job, course.contender))
            course.number += not course.contender
    found.left += [name for name in found.jobs[course.number :] if name not in found.left]


def _blame(course: Course, said: list[str], found: Found) -> None:
    """A row for the contender that took the process with it."""
    text = ": ".join([f"the process {course.ended}", *said[-1:]])
    found.add({"section": course.job, "name": course.contender, "size": "", "failed": text})


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
    process = subprocess.Popen(
        [sys.executable, str(WORKER), json.dumps(request)],
        env=environ, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
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
        reader.join()
        if process.stdout is not None:
            process.stdout.close()


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


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Kernels and train steps on a GPU.")
    parser.add_argument("--minutes", type=float, default=9.0, help="no job starts too late (9)")
    parser.add_argument("--wheel", type=Path, nargs="+", default=[], help="wheels, or folders")
    parser.add_argument("--only", default="", metavar="TEXT", help="jobs with this in their name")
    parser.add_argument("--choice", action="store_true", help="measure kernels/choice.json")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, without times")
    parser.add_argument("--plan", action="store_true", help="write what a run would measure")
    parser.add_argument("--out", type=Path, help="file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for, print one table, write the results."""
    options = parse(argv)
    usual = None if options.tiny or options.only else CHOICE if options.choice else RESULTS
    out, found, begun = options.out or usual, Found(), time.time()
    results = out if not options.choice else None
    for what in measure(options, found):
        print(f"{time.time() - begun:5.0f} s  {what}", file=sys.stderr, flush=True)
        if results:  # what there is, should this be cut off
            results.write_text(markdown(found, options))
    if results:
        results.write_text(markdown(found, options))
    elif out and not options.tiny:
        out.write_text(laid_out(choice_table(found, json.loads(CHOICE.read_text()))))
    rows = table(found)
    if found.left:
        print(f"left out: {'; '.join(found.left)}")
    if rows:
        show(rows)
    sys.exit(any(row[-1] in ("WRONG", "FAILED") for row in rows))


if __name__ == "__main__":
    main()
