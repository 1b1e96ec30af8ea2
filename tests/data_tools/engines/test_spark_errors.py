"""What Spark and Java write, as one line for the user. The texts are those that PySpark 4.3 printed, shortened."""

from __future__ import annotations

import pytest

from data_tools.engines.spark_context import mark, one_line
from megatron_kaiyuan.errors import UserError

TRACE = """An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.
: org.apache.spark.api.python.PythonException: [PYTHON_EXCEPTION] An exception was thrown from the Python worker:
Traceback (most recent call last):
  File "/env/lib/python3.11/site-packages/pyspark/worker.py", line 4327, in invoke_udf
    run_process()
{error}
 SQLSTATE: 38000
	at org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:1097)
"""
DIED = """An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 1.0 failed 1 times, most recent
failure: Lost task 0.0: org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)
	at org.apache.spark.api.python.BasePythonRunner$ReaderIterator$$anonfun$1.applyOrElse(PythonRunner.scala:624)
Caused by: java.io.EOFException
"""


@pytest.mark.parametrize("message", ["a.jsonl:3: is wrong", "中文 'x' \"y\" \\n", "surrogate \udcff"])
def test_a_mistake_comes_back_letter_for_letter(message: str) -> None:
    raised = f"RuntimeError: {mark(message)}"
    found = one_line(RuntimeError(TRACE.format(error=raised)))
    assert isinstance(found, UserError) and str(found) == str(UserError(message))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (DIED, "--engine spark: a worker process died, most likely for lack of memory"),
        (
            TRACE.format(error="ModuleNotFoundError: No module named 'data_tools'"),
            "--engine spark: the executors cannot import this package; every executor needs this package and Python 3.",
        ),
        (
            TRACE.format(error="pyspark.errors.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has"),
            "--engine spark: the executors run another version of Python; every executor needs",
        ),
        (
            'java.io.IOException: Cannot run program "/no/python": error=2, No such file or directory',
            "--engine spark: the executors do not find the interpreter of PYSPARK_PYTHON; every executor needs",
        ),
        ("Answer from Java side is empty", "--engine spark: the job failed (Answer from Java side is empty); finished"),
    ],
)
def test_known_failures_say_what_to_do(text: str, line: str) -> None:
    found = one_line(RuntimeError(text))
    assert isinstance(found, UserError) and str(found).startswith(line)


def test_a_defect_stays_a_trace() -> None:
    found = one_line(RuntimeError(TRACE.format(error="ZeroDivisionError: division by zero")))
    assert not isinstance(found, UserError) and "ZeroDivisionError: division by zero" in str(found)
