import os
import sys
import threading
from pathlib import Path

import pytest

from router.cli.children import Child, Children
from router.cli.faults import Failure

READY_S = 30.0  # a Python starts in a tenth of a second; a loaded machine may need many
SAYS = "import signal, sys, time; print('ready', flush=True); "
STUBBORN = SAYS + "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
PARENT = (
    "import signal, subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']); "
    "print(f'child {child.pid} ', flush=True); signal.pause()"
)


def python(children: Children, code: str, log: Path) -> Child:
    return children.start("a child", [sys.executable, "-c", code], log)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody has reaped yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in {"Z", "X"}


def test_leaving_ends_even_a_child_that_is_deaf_to_being_asked(tmp_path: Path) -> None:
    children = Children()
    child = python(children, STUBBORN, tmp_path / "log")
    child.wait_until(lambda: "deaf" in child.text(), READY_S)
    children.stop(patience_s=0.1)
    assert child.ended


def test_what_a_child_started_ends_with_it(tmp_path: Path) -> None:
    with Children() as children:
        child = python(children, PARENT, tmp_path / "log")
        child.wait_until(lambda: child.text().endswith(" \n"), READY_S)
        grandchild = int(child.text().split()[1])
        assert not is_gone(grandchild)
    for _ in range(300):
        if is_gone(grandchild):
            break
        threading.Event().wait(0.1)  # the kernel delivers SIGKILL in its own time
    assert is_gone(grandchild)


def test_a_child_that_ends_at_once_is_named_with_its_last_word(tmp_path: Path) -> None:
    with Children() as children:
        child = python(children, "import sys; sys.exit('no model here')", tmp_path / "log")
        with pytest.raises(Failure, match=r"^a child ended at once: no model here \(its log: .*log\)$"):
            child.wait_until(lambda: False, READY_S)


def test_a_child_that_never_gets_ready_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with Children() as children:
        child = python(children, "import signal; signal.pause()", tmp_path / "log")
        with pytest.raises(Failure, match="not ready after 0 s"):
            child.wait_until(lambda: False, 0.0)


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with Children() as children, pytest.raises(Failure, match="cannot be started: /nowhere/python: No such file"):
        children.start("vLLM", ["/nowhere/python"], tmp_path / "log")


def test_a_child_gets_what_it_is_told_in_its_environment_and_leads_a_group(tmp_path: Path) -> None:
    code = "import os; print(os.environ['TOLD'], os.getpgid(0) == os.getpid(), flush=True)"
    with Children() as children:
        child = children.start("a child", [sys.executable, "-c", code], tmp_path / "log", {"TOLD": "yes"})
        child.wait_until(lambda: "yes" in child.text(), READY_S)
        assert child.text() == "yes True\n"
    assert os.environ.get("TOLD") is None
