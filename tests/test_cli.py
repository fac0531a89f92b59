import contextlib
import io
import sys

import pytest

from sklearn_wbfuse import WassersteinFusion, __version__, cli


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
    end = next(i for i, line in enumerate(lines) if line.startswith("Of the same parents"))
    rows = [[cell for cell in line.split("  ") if cell] for line in lines[start:end] if line and not line.startswith("-")]
    assert [cell.strip() for cell in rows[0]] == ["network", "widths", "parameters", "accuracy", "seconds"]
    names = [row[0] for row in rows[1:]]
    assert [name[:11] for name in names[:3]] == ["A, a parent", "B, a parent", "C, a parent"]
    assert names[3:7] == ["ensemble of A, B", "plain average of A, B", "fused A, B", "ensemble of A, B, C"]
    assert [row[1] for row in rows[8:]] == ["64-64-32-10", "64-96-48-10", "64-128-64-10"]
    accuracy = [float(row[3].strip(" %")) for row in rows[1:]]
    assert accuracy[5] > accuracy[4] + 5  # fused, plain average
    assert min(accuracy[7:]) > 80


def test_demo_writes_its_picture(demo):
    _, out, _, folder = demo
    picture = folder / "wbfuse_demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert str(picture) in out


def test_without_a_win_and_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli.demo, "VanillaAveraging", lambda: WassersteinFusion(random_state=0))  # a tie is no win
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
