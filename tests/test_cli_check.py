"""`precir check`: what it prints, in three forms, its exit status, ranges, comments, bad input."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import precir
from precir.check.hazard import KINDS, Hazard, Step
from precir.check.report import RULES, Findings, as_sarif, plain
from precir.check.suppress import ignores, misspelt, suppressed
from precir.check.text import render, show
from precir.cli import main
from precir.cli.ranges import parse_ranges, spread
from precir.cli.trouble import UsageError

ROOT = Path(__file__).parent.parent

SOURCE = """
import jax
import jax.numpy as jnp
import precir

def grows(x):
    return jnp.exp(x)

def grows_args():
    return (jnp.linspace(0.0, 20.0, 5),)

def fine(x):
    return jnp.tanh(x)

fine_args = grows_args

def root(params, n, scale=1.0):
    return jnp.sqrt(params["w"]) * scale + jnp.sum(n)

def root_args():
    return {"w": jnp.ones(3), "b": jnp.ones(2)}, jnp.arange(3)

def named(x, *, shift):
    return jnp.log(x + shift)

def named_args():
    return (jnp.ones(3),), {"shift": jnp.full(3, 0.5)}

def bounded(x):
    return jnp.exp(x)

bounded_args = grows_args
def bounded_ranges():
    return (precir.Range(0, 1),)

def ruled(x):
    return jnp.exp(x)

ruled_args = grows_args
def ruled_ranges(path):
    return precir.Range(0, 100)

def crossed(x):
    return jnp.exp(x)

crossed_args = grows_args
crossed_ranges = (precir.Range(0, 1), None)

def failing(x):
    return jnp.exp(x)

failing_args = grows_args
def failing_ranges():
    return 1 / 0

def silenced(x):
    return jnp.exp(x)  # precir: ignore[overflow]

silenced_args = grows_args

def killed(x):
    return jnp.exp(-jnp.exp(x))

killed_args = grows_args

def power(x, n):
    return jnp.exp(x) if n > 2 else x

power_args = grows_args

ready = precir.compile(grows, recipe="float32")
ready_args = grows_args

def mismatch(x):
    return jnp.dot(x, jnp.ones(7))

mismatch_args = grows_args
NUMBER = 3
"""


MISNAMED = """
import jax.numpy as jnp

def grows(x):
    return jnp.exp(x)  # precir: ignore[overflw]

def grows_args():
    return (jnp.linspace(0.0, 20.0, 5),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checked")
    (made / "steps.py").write_text(SOURCE)
    (made / "misnamed.py").write_text(MISNAMED)
    return made


@pytest.fixture(autouse=True)
def _in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("COLUMNS", raising=False)


def run(capsys: pytest.CaptureFixture[str], *args: str, status: int = 0) -> str:
    """What a command prints; it must end with that status."""
    capsys.readouterr()
    assert main(["check", *args]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return out


# -- what is printed -------------------------------------------------------------------------------

GROWS = """\
steps.py:7:12 error overflow: an exponential leaves float16 (LIMITS)
    7 |     return jnp.exp(x)
      |            ^^^^^^^^^^
   because  FACT
   then     the result is inf
   mend     MEND

1 error in grows, float16
"""


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "steps.py:grows", status=1)
    # The words of a fact and of a mend are the linter's, not the command's.
    out = re.sub(r"(leaves float16) \(.*\)", r"\1 (LIMITS)", out)
    out = re.sub(r"(   because  ).*", r"\1FACT", out)
    out = re.sub(r"(   mend     ).*", r"\1MEND", out)
    assert out == GROWS


@pytest.mark.parametrize("output", ["text", "json", "sarif"])
def test_same_output_every_time(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("steps.py:grows", "--output", output, "--notes")
    assert run(capsys, *args, status=1) == run(capsys, *args, status=1)


@pytest.mark.parametrize(
    ("args", "status", "last"),
    [
        (["fine"], 0, "in fine, float16, its arguments as those of fine_args() (1 array)"),
        (["grows"], 1, "1 error in grows, float16"),
        (["grows", "--exit-zero"], 0, "1 error in grows, float16"),
        (["ready"], 1, "1 error in ready, float16"),
        (["grows", "--format", "bf16"], 0, "no findings in grows, bfloat16, "),
        (["grows", "--range", "x=0:1"], 0, "its arguments given by --range (1 array)"),
        (["grows", "--range", "x=0:30"], 1, "1 error"),
        (["grows", "--range", "0=0:30", "--range", "x=0:1"], 0, "given by --range (1 array)"),
        (["fine", "--args", "f16[3]"], 0, "its arguments unknown: give --range (1 array)"),
        (["killed"], 0, "(1 array; 1 note hidden: --notes)"),
        (["killed", "--notes"], 0, "1 note in killed, float16"),
        (["root"], 0, "(3 arrays)"),
        (["root", "--range", "params/w=-1:1"], 1, "1 error"),
        (["root", "--range", "params=-1:1"], 1, "1 error"),
        (["root", "--range", "0/w=-1:1"], 1, "1 error"),
        (["root", "--range", "*/b=-1:1"], 0, "given by --range (3 arrays)"),
        (["named"], 0, "(2 arrays)"),
        (["named", "--range", "shift=-2:-1"], 1, "1 error"),
        (["bounded"], 0, "its arguments given by bounded_ranges (1 array)"),
        (["bounded", "--range", "x=0:30"], 1, "1 error"),
        (["ruled"], 1, "1 error"),
        (["power", "--static", "n=3"], 1, "1 error in power, float16"),
        (["power", "--static", "n=1"], 0, "no findings"),
        (["silenced"], 0, "(1 array; 1 suppressed)"),
    ],
)  # fmt: skip
def test_exit_status_and_last_line(
    args: list[str], status: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    function, *options = args
    out = run(capsys, f"steps.py:{function}", *options, status=status)
    assert last in out.splitlines()[-1]


def test_help_tells_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--help"]) == 0
    assert "exit status:\n  0  nothing was found" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(run(capsys, "steps.py:grows", "--output", "json", status=1))
    assert list(made) == [
        "version", "precir", "target", "format", "counts", "findings", "comments"
    ]  # fmt: skip
    assert made["version"] == 1
    assert made["target"] == "steps.py:grows"
    assert made["counts"] == {"error": 1, "warning": 0, "note": 0, "suppressed": 0}
    (finding,) = made["findings"]
    place = {"file": "steps.py", "line": 7, "column": 12, "end_line": 7, "end_column": 22}
    kind = {"kind": "overflow", "severity": "error", "symptom": "inf", "format": "float16"}
    assert finding.items() >= (place | kind | {"code": "return jnp.exp(x)"}).items()
    (x,), named = finding["witness"]
    assert named == {}
    assert max(x) > np.log(65504)
    assert min(x) >= 0
    assert max(x) <= 20


def test_json_counts_hidden_notes(capsys: pytest.CaptureFixture[str]) -> None:
    args = ("steps.py:killed", "--output", "json")
    made = json.loads(run(capsys, *args))
    assert (made["counts"]["note"], made["findings"]) == (1, [])
    made = json.loads(run(capsys, *args, "--notes"))
    assert [f["severity"] for f in made["findings"]] == ["note"]


# -- SARIF -----------------------------------------------------------------------------------------


# Of each kind of object, the properties of the standard that precir writes: it forbids others.
SARIF = {
    "log": {"$schema", "version", "runs"},
    "run": {"tool", "columnKind", "invocations", "results", "properties"},
    "driver": {"name", "version", "semanticVersion", "rules"},
    "rule": {"id", "name", "shortDescription", "defaultConfiguration"},
    "result": {
        "ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints",
        "properties", "codeFlows", "suppressions",
    },
    "location": {"physicalLocation", "message"},
    "physical": {"artifactLocation", "region"},
    "region": {"startLine", "startColumn", "endLine", "endColumn", "snippet"},
}  # fmt: skip


def check_sarif(log: Any) -> list[Any]:
    """What SARIF 2.1.0 requires of the parts that precir writes; returns the results."""
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "precir"
    assert log.keys() == SARIF["log"]
    assert run.keys() == SARIF["run"]
    assert driver.keys() == SARIF["driver"]
    assert all(rule.keys() == SARIF["rule"] for rule in driver["rules"])
    assert run["columnKind"] == "unicodeCodePoints"
    assert all(i["executionSuccessful"] for i in run["invocations"])
    rules = [rule["id"] for rule in driver["rules"]]
    assert rules == list(KINDS)
    assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
    for result in run["results"]:
        assert result.keys() <= SARIF["result"]
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())
        for location in result["locations"]:
            check_location(location)
        for flow in result.get("codeFlows", []):
            for thread in flow["threadFlows"]:
                assert thread["locations"]
                for step in thread["locations"]:
                    assert step["location"]["message"]["text"]
                    check_location(step["location"])
    found: list[Any] = run["results"]
    return found


def check_location(location: Any) -> None:
    assert location.keys() <= SARIF["location"]
    physical = location.get("physicalLocation")
    if physical is None:
        assert location["message"]["text"]
        return
    assert physical.keys() == SARIF["physical"]
    assert physical["region"].keys() <= SARIF["region"]
    uri = physical["artifactLocation"]["uri"]
    assert ":" not in uri
    assert not uri.startswith("/")
    region = physical["region"]
    assert region["startLine"] >= 1
    if "endLine" in region:
        end = (region["endLine"], region["endColumn"])
        start = (region["startLine"], region["startColumn"])
        assert start < end
        assert region["startColumn"] >= 1


def test_sarif(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "steps.py:grows", "--output", "sarif", status=1)
    (result,) = check_sarif(json.loads(out))
    assert (result["ruleId"], result["level"]) == ("overflow", "error")
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"] == {"uri": "steps.py", "uriBaseId": "%SRCROOT%"}
    region = physical["region"]
    assert region["snippet"]["text"] == "    return jnp.exp(x)"
    assert [region[k] for k in ("startLine", "startColumn", "endColumn")] == [7, 12, 22]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    placed = [p for s in steps if (p := s["location"].get("physicalLocation"))]
    assert placed[-1]["region"] == region
    assert steps[-1]["location"]["message"]["text"] == "the result is inf"
    assert len(steps) >= 2


def test_sarif_without_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_sarif(json.loads(run(capsys, "steps.py:fine", "--output", "sarif"))) == []


def test_sarif_tells_what_is_suppressed(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "steps.py:silenced", "--output", "sarif")
    (result,) = check_sarif(json.loads(out))
    assert result["suppressions"] == [{"kind": "inSource"}]


def test_sarif_chain_has_the_places_of_steps(folder: Path) -> None:
    file = str(folder / "steps.py")
    hazard = make(file, 7, 11, 21, because=(Step("x is large", file, 6),), then=(Step("1 / inf"),))
    (result,) = check_sarif(as_sarif(Findings("t", "float16", [hazard])))
    first, birth, last = (
        step["location"] for step in result["codeFlows"][0]["threadFlows"][0]["locations"]
    )
    assert first["physicalLocation"]["region"] == {"startLine": 6}
    assert birth["message"]["text"] == hazard.message
    assert last == {"message": {"text": "1 / inf"}}


def test_every_kind_is_described() -> None:
    assert tuple(RULES) == KINDS


# -- how a finding looks ---------------------------------------------------------------------------


def make(file: str, line: int, column: int, end: int, end_line: int = 0, **more: Any) -> Hazard:
    return Hazard(
        "overflow", "exp", "exp", "inf", "error", file, line, "it overflows", "do not", "float16",
        column, end_line or line, end, **more,
    )  # fmt: skip


def test_carets_stand_under_the_columns_python_means(tmp_path: Path) -> None:
    file = tmp_path / "wide.py"
    code = '\té = "日本"; y = exp(é)'
    file.write_text(f"{code}\n", encoding="utf-8")
    start = len(code[: code.index("exp")].encode())  # Python counts bytes
    head, line, marks, *_ = str(
        make(str(file), 1, start, start + len("exp(é)".encode()))
    ).splitlines()
    assert head.endswith("wide.py:1:16 error overflow: it overflows")
    assert line == '    1 |     é = "日本"; y = exp(é)'
    assert marks == f"      |     {' ' * len('é = ....; y = ')}" + "  " + "^" * 6


def test_a_finding_of_several_lines_shows_the_first(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("y = exp(  # of x\n    x\n)\n")
    _, line, marks, *_ = str(make(str(file), 1, 4, 1, end_line=3)).splitlines()
    assert line == "    1 | y = exp(  # of x"
    assert marks == "      |     ^^^^..."
    assert plain(make(str(file), 1, 4, 1, end_line=3))["end_column"] == 2


@pytest.mark.parametrize("file", ["", "<stdin>", "gone.py"])
def test_a_finding_without_code_has_no_carets(file: str) -> None:
    text = str(make(file, 3 if file else 0, 0, 0))
    assert "^" not in text
    assert text.splitlines()[0].endswith("error overflow: it overflows")
    assert plain(make(file, 3, 0, 0))["code"] == ""


def test_long_sentences_hang_under_their_label() -> None:
    lines = render([make("", 0, 0, 0, because=(Step("a word " * 20),))], color=False, width=60)
    assert max(map(len, lines.splitlines()[1:])) <= 60
    assert all(line.startswith(" " * 12) for line in lines.splitlines()[2:4])


def test_colours_only_on_terminals() -> None:
    assert "\x1b" not in str(make("", 0, 0, 0))
    assert "\x1b[1;31merror" in render([make("", 0, 0, 0)], color=True)
    with open(os.devnull, "w", encoding="utf-8") as file:
        console = Console(file=file, record=True)
        show([make("", 0, 0, 0)], console)
        assert not console.is_terminal


def test_markup_in_code_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "markup.py"
    file.write_text("y = x[bold] + x[/]\n")
    assert "y = x[bold] + x[/]" in str(make(str(file), 1, 4, 11))


def test_small_witnesses_are_written_out_and_large_ones_measured() -> None:
    large = np.arange(65, dtype=np.float32)
    witness = (({"a": np.float32([1, np.inf]), "k": jax.random.key(0)}, large, 3, None), {})
    finding = plain(make("", 0, 0, 0, witness=witness))
    (small, measured, number, none), named = finding["witness"]
    assert small == {"a": [1.0, "inf"], "k": [0, 0]}
    assert measured == {"shape": [65], "dtype": "float32", "min": 0.0, "max": 64.0}
    assert (number, none, named) == (3, None, {})
    assert json.loads(json.dumps(finding, allow_nan=False)) == finding
    assert json.dumps(make("", 0, 0, 0).as_dict())


# -- comments --------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> str:
    file = folder / f"c{abs(hash(text))}.py"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize(
    ("text", "line", "end", "ignored"),
    [
        ("y = exp(x)  # precir: ignore\n", 1, 1, True),
        ("y = exp(x)  #precir:ignore\n", 1, 1, True),
        ("y = exp(x)  # noqa: E501  # precir: ignore  because it is so\n", 1, 1, True),
        ("y = exp(x)  # precir: ignore[overflow]\n", 1, 1, True),
        ("y = exp(x)  # precir: ignore[ underflow , overflow ]\n", 1, 1, True),
        ("y = exp(x)  # precir: ignore[underflow]\n", 1, 1, False),
        ("y = exp(x)  # precir: ignore[]\n", 1, 1, False),
        ("y = exp(x)  # precir: ignored\n", 1, 1, False),
        ("y = exp(x)  # precir: ignore-not\n", 1, 1, False),
        ("y = exp(x, '# precir: ignore')\n", 1, 1, False),
        ("y = '''\n# precir: ignore\n''' + exp(x)\n", 3, 3, False),
        ("y = exp(x)\nz = 1  # precir: ignore\n", 1, 1, False),
        ("# precir: ignore\ny = exp(x)\n", 2, 2, True),
        ("# precir: ignore\n\ny = exp(x)\n", 3, 3, False),
        ("# precir: ignore\ny = (\n  exp(x)\n)\n", 3, 3, True),
        ("z = 1  # precir: ignore\ny = exp(x)\n", 2, 2, False),
        ("y = (\n  exp(x)\n)  # precir: ignore\n", 2, 2, True),
        ("y = (  # precir: ignore\n  exp(x)\n)\n", 2, 2, True),
        ("y = (\n  exp(x)\n  + z  # precir: ignore\n)\n", 2, 2, False),
        ("y = (\n  exp(x)  # precir: ignore\n  + z\n)\n", 2, 2, True),
        ("y = (\n  # precir: ignore\n  exp(x)\n  + z\n)\n", 3, 3, True),
        ("y = (\n  exp(\n    x  # precir: ignore\n  )\n)\n", 2, 4, True),
        ("def f(x):  # precir: ignore\n    return exp(x)\n", 2, 2, False),
        ("if x:\n    y = exp(x)  # precir: ignore\n    z = exp(x)\n", 3, 3, False),
        ("y = exp(x)  # precir: ignore\nz = (\n", 1, 1, True),
    ],
)
def test_comments(text: str, line: int, end: int, ignored: bool, tmp_path: Path) -> None:
    assert suppressed(make(write(tmp_path, text), line, 4, 10, end_line=end)) is ignored


def test_misspelt_kinds_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, "y = 1  # precir: ignore[overflw, underflow]\n# precir: ignore[]\n")
    assert [(m.line, m.column, m.message) for m in misspelt(file)] == [
        (1, 8, "there is no kind 'overflw': did you mean overflow?"),
        (2, 1, f"names no kind: one of {', '.join(KINDS)}"),
    ]
    assert len(ignores(file)) == 2


def test_the_command_tells_misspelt_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "misnamed.py:grows", status=1)
    assert "warning comment: there is no kind 'overflw': did you mean overflow?" in out
    assert out.splitlines()[-1] == "1 error in grows, float16"
    made = json.loads(run(capsys, "misnamed.py:grows", "--output", "json", status=1))
    assert [c["file"] for c in made["comments"]] == ["misnamed.py"]


def test_the_function_obeys_comments(folder: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(compile(SOURCE, str(folder / "steps.py"), "exec"), namespace)
    assert precir.check(namespace["silenced"], *namespace["grows_args"]()) == []
    assert len(precir.check(namespace["grows"], *namespace["grows_args"]())) == 1


# -- ranges ----------------------------------------------------------------------------------------


def rules_of(*settings: str) -> dict[str, Any]:
    """The range of every array of a small call."""
    args = ({"w": jnp.ones(3), "n": jnp.arange(2)}, jax.ShapeDtypeStruct((2,), "float32"), 0.5)
    rules = spread(parse_ranges(settings), ["params", "x", "scale"], args)
    paths = (["['n']", "['w']"], [""], [""])
    found = {}
    for name, rule, below in zip("pxs", rules, paths, strict=True):
        found.update({name + path: rule(path) for path in below})
    return found


def test_ranges_of_arrays() -> None:
    one, seen = precir.Range(-1, 1), precir.Range(1, 1)
    half = precir.Range(0.5, 0.5)
    rest = {"p['n']": None, "p['w']": seen, "x": None, "s": half}
    assert rules_of("x=-1:1") == rest | {"x": one}
    assert rules_of("1=-1:1") == rest | {"x": one}
    assert rules_of("params=-1:1") == rest | {"p['n']": one, "p['w']": one}
    assert rules_of("params/*=-1:1") == rest | {"p['w']": one}
    assert rules_of("*=-1:1") == {"p['n']": None, "p['w']": one, "x": one, "s": one}
    assert rules_of("*=-2:2", "params/w=-1:1")["p['w']"] == one
    assert rules_of("x=-1e3:inf")["x"] == precir.Range(-1000, np.inf)


@pytest.mark.parametrize(
    "text", ["", "x", "x=", "x=1", "=0:1", "x=a:b", "x=1:", "x=2:1", "x=nan:1", "x=0:1:2", "y=0:1"]
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--range ") as error:
        rules_of(text)
    assert error.value.fix


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        ("nope.py:f", [], "there is no such file"),
        ("steps.py", [], "is not FILE:FUNCTION"),
        ("steps.py:grow", [], "did you mean grows?"),
        ("steps.py:NUMBER", [], "NUMBER is no function but int"),
        ("steps.py:spread", [], "there is no spread in it"),
        ("steps.py:grows", ["--format", "float17"], "'float17' is not a floating-point format"),
        ("steps.py:grows", ["--args", "f32["], "cannot read 'f32['"),
        ("steps.py:grows", ["--range", "x=2:1"], "is not an interval"),
        ("steps.py:grows", ["--range", "y=0:1"], "fix    there are x\n"),
        ("steps.py:grows", ["--range", "x"], "is not ARRAY=LO:HI"),
        ("steps.py:crossed", [], "2 ranges for 1 arguments"),
        ("steps.py:failing", [], "failing_ranges() failed: ZeroDivisionError"),
        ("steps.py:mismatch", [], "mismatch cannot be traced in float16: TypeError"),
        ("steps.py:mismatch", [], "in mismatch\n           return jnp.dot(x, jnp.ones(7))"),
        ("steps.py:grows", ["--args", "f32 f32"], "fix    it is grows(x)"),
        ("steps.py:power", ["--static", "n"], "is not name=value"),
        ("steps.py:grows", ["--seconds", "long"], "'long' is no number of seconds"),
        ("steps.py:grows", ["--output", "xml"], "see precir check --help"),
    ],
)
def test_what_is_wrong_is_said(
    target: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", target, *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("precir: error: ")
    assert said in err
    assert "Traceback" not in err
    assert "bug in precir" not in err


# -- the README ------------------------------------------------------------------------------------

LOCKED = re.findall(r"^jax==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
COMMAND = "precir check examples/buggy_step.py:train_step --format float16 --range there=0:1"


@pytest.mark.skipif(
    jax.__version__ != LOCKED[0],
    reason="another JAX may trace other primitives",
)
def test_readme_shows_what_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """README_WRITE=1 in the environment writes it anew."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    out = run(capsys, *COMMAND.split()[2:], "--seconds", "60", status=1)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = re.compile(rf"(```console\n\$ {re.escape(COMMAND)}\n)(.*?)(```\n)", re.DOTALL)
    found = block.search(text)
    assert found is not None, f"the README does not show: {COMMAND}"
    if os.environ.get("README_WRITE"):
        readme.write_text(block.sub(lambda m: m[1] + out + m[3], text), encoding="utf-8")
    else:
        assert found[2] == out, "README_WRITE=1 pytest tests/test_cli_check.py writes it anew"


def test_the_example_is_sound_in_float32(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command = COMMAND.replace("float16", "float32").split()[2:]
    assert "no findings in train_step, float32" in run(capsys, *command)
