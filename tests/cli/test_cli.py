import contextlib
import io
import subprocess
import sys

import pytest

from sklearn_wbfuse import WassersteinFusion, __version__, cli
from sklearn_wbfuse.cli import demo as command


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Exit code, what was printed, what went to stderr, and the folder."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("demo")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["demo", "--output", str(folder)])
    return code, out.getvalue(), err.getvalue(), folder


def test_demo_succeeds_and_is_quiet_in_a_pipe(demo):
    code, _, err, _ = demo
    assert code == 0
    assert err == ""


def test_demo_prints_one_table(demo):
    _, out, _, _ = demo
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("network "))
    end = next(i for i, line in enumerate(lines) if line.startswith("Fusing A and B"))
    rows = [[cell for cell in line.split("  ") if cell] for line in lines[start:end] if line and not line.startswith("-")]
    assert [cell.strip() for cell in rows[0]] == ["network", "widths", "parameters", "accuracy", "seconds"]
    names = [row[0] for row in rows[1:]]
    assert [name[:11] for name in names[:3]] == ["A, a parent", "B, a parent", "C, a parent"]
    assert names[3:7] == ["ensemble of A, B", "plain average of A, B", "fused A, B", "ensemble of A, B, C"]
    assert [row[1] for row in rows[8:]] == ["64-64-32-10", "64-96-48-10", "64-128-64-10"]
    a, b, c, _, average, fused, _, *of_three = (float(row[3].strip(" %")) for row in rows[1:])
    assert fused > average + 5
    assert fused >= min(a, b) and fused > max(a, b) - 1
    assert min(of_three) > min(a, b, c) - 1


def test_demo_writes_its_picture(demo):
    _, out, _, folder = demo
    picture = folder / "wbfuse_demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in out


def test_without_a_win_and_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "VanillaAveraging", lambda: WassersteinFusion(random_state=0))  # a tie is no win
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "does NOT beat" in captured.out
    assert "pip install 'sklearn_wbfuse[plot]'" in captured.out
    assert "training A ..." in captured.err.splitlines()
    assert not list(tmp_path.iterdir())


def test_wrong_folder(capsys, tmp_path):
    assert cli.main(["demo", "--output", str(tmp_path / "missing")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and "missing" in captured.err


def test_no_command_shows_help(capsys):
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["demo", "--seed", "-1"], 2), (["other"], 2)])
def test_argparse_exits(arguments, code, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == code
    captured = capsys.readouterr()
    assert (captured.out.strip() == f"wbfuse {__version__}") if code == 0 else ("error" in captured.err)


MISSPELT = {
    ("demmo",): "'demmo' .*Did you mean 'demo'? See wbfuse --help",
    ("--versoin",): "no option --versoin. Did you mean '--version'?",
    ("fuse", "a.pt", "--ouptut=out"): "wbfuse fuse: error: there is no option --ouptut. Did you mean '--output'?",
    ("fuse", "a.pt", "-o", "out", "--corection", "repair"): "no option --corection. Did you mean '--correction'?",
    ("fuse", "a.pt", "-o", "out", "--schedule", "Layerwise"): "invalid choice: 'Layerwise' .*Did you mean 'layerwise'?",
    ("inspect", "a.pt", "--Model", "net.py:Net"): "no option --Model. Did you mean '--model'? See wbfuse inspect --help",
    ("inspect", "a.pt", "--zzz"): "no option --zzz. See wbfuse inspect --help",
}


@pytest.mark.parametrize("arguments", MISSPELT)
def test_misspelt_words_get_a_hint(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    err = capsys.readouterr().err
    assert exit_.value.code == 2 and len(err.splitlines()) == 1
    assert all(part in err for part in MISSPELT[arguments].split(".*"))


def test_options_may_be_cut_short_and_values_may_look_like_options(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fuse", "--out", "x", "--weights=--1"])
    assert "--weights: must be numbers" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["fuse", "--help"], ["inspect", "--hepl"]])
def test_help_comes_without_pytorch(arguments):
    code = (
        "import sys\nfrom sklearn_wbfuse.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "--hepl" in arguments else 0) and "AssertionError" not in done.stderr
