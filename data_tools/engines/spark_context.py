"""The Spark context: how it is started without a word on the screen, and what goes wrong with it in one line."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from data_tools.reading.tasks import KEPT
from megatron_kaiyuan.errors import UserError, install_command, require

OLDEST = 4
_JAVA = "Spark needs Java 17 or 21: install it (Debian: openjdk-17-jre-headless) and set JAVA_HOME"
# What a Java says that is too old or too new for Spark.
_OTHER_JAVA = re.compile("UnsupportedClassVersionError|Module jdk.incubator|Unrecognized option|JAVA_HOME")
_PYTHON = (
    f"every executor needs this package and Python {sys.version_info[0]}.{sys.version_info[1]}: set PYSPARK_PYTHON to "
    "an interpreter that all hosts see, or ship an environment with --archives"
)
# An executor's mistake of the user's, in the trace that Spark passes on.
_MARK = "kaiyuan-error:"
_MARKED = re.compile(_MARK + r"((?:[0-9a-f]{2})+)")
# What identifies a failure in a trace of Java's, and how the user's line about it ends.
_KNOWN = (
    (re.compile(r"No module named '?(?:data_tools|megatron_kaiyuan)"), "the executors cannot import this package"),
    (re.compile(r"PYTHON_VERSION_MISMATCH"), "the executors run another version of Python"),
    (re.compile(r'Cannot run program "[^"]*"'), "the executors do not find the interpreter of PYSPARK_PYTHON"),
)
_DIED = re.compile(
    r"Python worker exited unexpectedly|ExecutorLostFailure|Remote RPC client disassociated|EOFException"
)


def spark_context() -> Any:
    """The context that there is, or a new one: as spark-submit or PYSPARK_SUBMIT_ARGS say, else of SPARK_MASTER, else
    of Spark's own settings, whose default is local[*].

    Raises:
        UserError: PySpark or Java is not installed, or Spark does not start.
    """
    with warnings.catch_warnings():
        # That parts of PySpark which are not used here want another version of some library.
        warnings.simplefilter("ignore")
        pyspark = require("pyspark", "spark", "--engine spark")
    if int(pyspark.__version__.split(".")[0]) < OLDEST:
        raise UserError(f"--engine spark: PySpark {pyspark.__version__} is too old: {install_command('spark')}")
    if (context := pyspark.SparkContext._active_spark_context) is not None:
        return context
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not _java_is_there():
        raise UserError(f"--engine spark: there is no Java; {_JAVA}")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = pyspark.SparkConf().setAppName("kaiyuan-data").set("spark.ui.showConsoleProgress", "false")
    if master := os.environ.get("SPARK_MASTER"):
        settings.setMaster(master)
    context = _start(pyspark, settings)
    atexit.register(_stop, context)
    return context


def _start(pyspark: Any, settings: Any) -> Any:
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            # The Java process logs there for as long as it lives: what matters in it is printed in our words.
            with _standard_error(log):
                return pyspark.SparkContext(conf=settings)
        except Exception as error:
            log.seek(0)
            logged = log.read()
            reason = _first_reason(logged) or _first_reason(str(error)) or str(error)
            advice = _JAVA if _OTHER_JAVA.search(logged) else "look at --master and the other options of Spark"
            raise UserError(f"--engine spark: Spark did not start ({reason}); {advice}") from error


def _stop(context: Any) -> None:
    with suppress(Exception):
        context.stop()


def _java_is_there() -> bool:
    home = os.environ.get("JAVA_HOME")
    return shutil.which(os.path.join(home, "bin", "java") if home else "java") is not None


@contextmanager
def _standard_error(log: IO[str]) -> Iterator[None]:
    """In the block standard error is `log`, also that of processes which are started there, for their whole life."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _first_reason(log: str) -> str:
    """Return the line of a Java log that names the error: the first exception, else the last other line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"(Exception|Error)\b", line) and not line.startswith("at ")]
    rest = [line for line in lines if not re.search(r"^WARNING:| WARN | INFO |log4j|log level|^at ", line)]
    return next(iter(wrong), rest[-1] if rest else "").removeprefix('Exception in thread "main" ')[:500]


def mark(message: str) -> RuntimeError:
    """What an executor raises for a mistake of the user's, so that `one_line` finds it."""
    return RuntimeError(_MARK + message.encode("utf-8", "surrogatepass").hex())


def one_line(error: Exception) -> Exception:
    """What a failed job is to the user: the line that the executor has marked, or another one; a defect stays a trace.

    Args:
        error: of py4j, with traces of Python and Java in its message.
    """
    text = str(error)
    if found := _MARKED.search(text):
        return UserError(bytes.fromhex(found[1]).decode("utf-8", "surrogatepass"))
    for sign, what in _KNOWN:
        if sign.search(text):
            return UserError(f"--engine spark: {what}; {_PYTHON}")
    if _DIED.search(text):
        return UserError(
            "--engine spark: a worker process died, most likely for lack of memory; give executors more "
            f"(spark.executor.memoryOverhead) or fewer cores, {KEPT}"
        )
    if "Traceback (most recent call last)" in text:
        return RuntimeError(text)
    return UserError(f"--engine spark: the job failed ({_first_reason(text) or 'Java has ended'}); {KEPT}")
