"""torchrun with short answers: one line for each failed rank instead of stack traces, and the worker's own exit code.

    python -m megatron_kaiyuan.cluster.torchrun --nproc-per-node 2 -m megatron_kaiyuan.cli train RECIPE

Takes torchrun's own arguments; with --standalone no other machine can reach what it opens (`one_launcher.py`). Exit
codes:
    0    every worker exited with 0
    2    a worker met a user's mistake; it has printed its `error:` line already
    128 + signal   the launcher or a worker got the signal and the run stopped (143 for SIGTERM, 129 for SIGHUP, 138 for
                   SIGUSR1), or a worker died of it (137: SIGKILL, often no memory)
    otherwise      the exit code of the first worker that failed, none of them by a signal

The first signal to the launcher is passed on to the workers; those that follow are ignored, as is SIGHUP under nohup.
They have TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (here 120 unless set; torchrun's own default is 30) to save a
checkpoint and end before they get SIGKILL. torchrun signals the whole process group of a worker, helper processes too.
After a signal it does not report how the workers ended: the run's `latest` does. When one rank fails, torchrun sends
SIGTERM to the healthy ones and waits 30 seconds, which cannot be changed. When the launcher itself is killed, training
ranks end with it (`cluster/parent.py`).

With --log-dir, the trace of a rank's exception stays there in an `error.json`, and the line about the rank names it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from megatron_kaiyuan import exit_codes, logs
from megatron_kaiyuan.cluster import parent
from megatron_kaiyuan.cluster.open_files import allow_open_files
from megatron_kaiyuan.errors import UserError, describe
from megatron_kaiyuan.streams import make_output_optional

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

log = logging.getLogger("megatron_kaiyuan.cluster.torchrun")

# torchrun's own, and the one that clusters send before the time is up; unhandled it would end the launcher alone.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
# Of a worker that was asked to stop and has printed so.
_STOPPED = tuple(128 + getattr(signal, name) for name in _SIGNALS)
_SHUTDOWN_SECONDS = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the workers and wait for them.

    Args:
        arguments: torchrun's arguments; `sys.argv[1:]` when None.

    Returns:
        The exit code, as listed above.
    """
    make_output_optional()
    _prepare_torchrun()

    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from megatron_kaiyuan.cluster.meeting import NameNotKnown

    given = list(sys.argv[1:] if arguments is None else arguments)
    signals = handled_signals()
    # torchrun's own handler would raise again on a second signal (a lost terminal sends SIGHUP twice) and give up the
    # workers while they save.
    api._terminate_process_handler = functools.partial(_stop_once, signals, api._terminate_process_handler)
    os.environ[parent.VARIABLE] = str(os.getpid())
    try:
        logs.set_up()
        _launch(given, signals)
    except UserError as error:
        log.error(describe(error))
        return exit_codes.MISTAKE
    except ChildFailedError as error:
        return report_failures(error.failures)
    except api.SignalException as error:
        return exit_codes.of_signal(error.sigval)
    except (RuntimeError, ValueError, OSError, NameNotKnown) as error:
        log.error(f"launcher: {' '.join(str(error).split())}")
        return exit_codes.FAILED
    return 0


def _prepare_torchrun() -> None:
    """Set what torchrun reads from the environment when it is imported, import it, and quieten its log."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_SECONDS))
    # The launcher needs no device; platform npu loads torch_npu itself and says what is missing.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    chosen_level = "LOGLEVEL" in os.environ
    os.environ.setdefault("LOGLEVEL", "ERROR")
    importlib.import_module("torch.distributed.run")
    if not chosen_level:
        # This process's log level is not for the workers, and the lines below say what elastic would log.
        del os.environ["LOGLEVEL"]
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


def _launch(arguments: Sequence[str], signals: Sequence[str]) -> None:
    """Run torchrun with these arguments until its workers have ended.

    Raises:
        UserError, ChildFailedError, SignalException, RuntimeError, ValueError, OSError, NameNotKnown: see `main`.
    """
    from torch.distributed.run import parse_args, run

    from megatron_kaiyuan.cluster.meeting import announce_waits, wait_for_name
    from megatron_kaiyuan.cluster.one_launcher import stay_inside

    # torchrun always makes a folder for error files, and leaves it.
    with tempfile.TemporaryDirectory(prefix="torchrun_") as scratch:
        # Options may be given twice; the last one counts.
        parsed = parse_args([f"--signals-to-handle={','.join(signals)}", f"--log-dir={scratch}", *arguments])
        if raised := allow_open_files(_ranks(parsed), holds_store=True):
            log.info(raised)
        if parsed.standalone:
            stay_inside(parsed)
        elif parsed.rdzv_endpoint:
            wait_for_name(parsed.rdzv_endpoint)
            announce_waits(parsed)
        run(parsed)


def handled_signals() -> list[str]:
    """Names of the signals that stop the job: not SIGHUP where it is ignored, as nohup wants it."""
    return [name for name in _SIGNALS if name != "SIGHUP" or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN]


def _ranks(arguments: Namespace) -> int:
    """Return how many ranks torchrun's arguments ask for at most; `auto` and `gpu` stand for no more than 16 a node."""
    nodes, of_node = str(arguments.nnodes).rpartition(":")[2], str(arguments.nproc_per_node)
    return (int(nodes) if nodes.isdigit() else 1) * (int(of_node) if of_node.isdigit() else 16)


def _stop_once(
    signals: Sequence[str], stop: Callable[[int, FrameType | None], None], number: int, frame: FrameType | None
) -> None:
    for name in signals:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    stop(number, frame)


def report_failures(failures: Mapping[int, ProcessFailure]) -> int:
    """Print one line for each failed rank of this node that has not explained itself.

    Args:
        failures: by rank; workers that the launcher stopped because of another's failure are among them.

    Returns:
        The exit code for the launcher.
    """
    # The launcher stops the other workers with SIGTERM: such an end is a consequence, unless there is nothing else.
    causes = {rank: failure for rank, failure in failures.items() if failure.exitcode != -signal.SIGTERM} or failures
    for rank, failure in sorted(causes.items()):
        if failure.exitcode not in (exit_codes.MISTAKE, *_STOPPED):
            trace = f", its trace is in {failure.error_file}" if os.path.exists(failure.error_file) else ""
            log.error(f"rank {rank} {_ending(failure.exitcode)}{trace}")
    if any(failure.exitcode == exit_codes.MISTAKE for failure in causes.values()):
        return exit_codes.MISTAKE
    # Who loses a rank that was killed ends too, maybe before anybody looks.
    first = min(causes.values(), key=lambda failure: (failure.exitcode > 0, failure.timestamp))
    return first.exitcode if first.exitcode > 0 else 128 - first.exitcode


def _ending(exit_code: int) -> str:
    if exit_code > 0:
        return f"ended with exit code {exit_code}"
    hint = " (often no memory; or by torchrun, as a rank that did not end)" if exit_code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-exit_code).name}{hint}"


if __name__ == "__main__":
    sys.exit(main())
