"""What a test run inherits from whoever started it, set to what the tests are written for."""

import os
import signal
import sys
import threading

#: Signals that a shell or nohup leaves ignored in what it starts in the background; a child would ignore them as well.
IGNORED = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU")
#: Beginnings of variables that change what programs print, where they look, or what they take themselves for.
OTHERS = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "GRADIO_", "ACCELERATE_", "RAY_", "MASTER_", "LC_", "TORCHELASTIC_")
OTHER = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("LANG", "LANGUAGE", "TZ", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "PYTHON_COLORS"),
    *("PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONINSPECT"),
    *("PYTHONSAFEPATH", "PYTHONDEVMODE", "PYTHONVERBOSE", "PYTHONPROFILEIMPORTTIME"),
    *("MPLBACKEND", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_LOGS"),
}
#: A terminal as wide as where there is none, the characters that outputs are written in, and no detour to this machine.
SET = {"COLUMNS": "80", "TERM": "dumb", "LC_ALL": "C.UTF-8", "NO_PROXY": "127.0.0.1,localhost"}
SET["no_proxy"] = SET["NO_PROXY"]


def settle() -> None:
    """Settle signals, variables, the mask of new files' permissions and the standard streams, for children too."""
    if threading.current_thread() is threading.main_thread():
        _settle_signals()
    for name in list(os.environ):
        if name.startswith(OTHERS) or name in OTHER:
            del os.environ[name]
    os.environ.update(SET)
    os.umask(0o022)
    if sys.stdin is None:  # closed: the next file that is opened would be it
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115


def _settle_signals() -> None:
    """Let children have signals as they are by default: what is handled here is not ignored there.

    This process itself goes on ignoring what it was told to ignore.
    """
    for name in IGNORED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it takes children's exit statuses away
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
