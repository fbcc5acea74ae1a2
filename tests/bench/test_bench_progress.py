"""show_progress: a bar on a terminal's standard error, nothing anywhere else."""

from torchkiln.bench.progress import show_progress
from torchkiln.progress import progress as report_phase


def test_silent_unless_asked_and_on_a_terminal(capfd):
    for enabled in (False, True):
        with show_progress(enabled) as progress:
            progress("building eager", 0, 3)
            report_phase("capture", 0, 1)
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_it_shows_the_step_and_the_engines_phase(capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with show_progress(True) as progress:
        progress("building torchkiln fp32", 1, 3)
        report_phase("capture", 0, 1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "building torchkiln fp32 (capture)" in err
    assert "1/3" in err
