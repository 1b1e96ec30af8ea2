#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Runs a command of kaiyuan-data that has --engine on Spark: the driver is here, the executors do the work.

  launch/spark_submit.sh [--master URL] [options of spark-submit] -- COMMAND [options]

  --master URL           local[N], local[*], yarn, spark://HOST:PORT or k8s://https://HOST:PORT (SPARK_MASTER; default:
                         that of Spark's own settings, else local[*])
  --dry-run              print the command, start nothing

Executors read and write files themselves: input, output, tokenizers and models lie under the same paths on the driver and on
all executors (NFS, Lustre, HDFS mounted as a file system). No text passes through Java, so executors need little
Java memory; what Python takes is outside of it: --conf spark.executor.memoryOverhead, about 1.5 GB a core.
PYSPARK_PYTHON is the Python of the executors, with this project installed (default: the one here, seen by all hosts).

Examples:
  launch/spark_submit.sh --master 'local[4]' -- preprocess --input text --output-prefix corpora/web \
      --tokenizer-model tokenizer
  launch/spark_submit.sh --master spark://node0:7077 --total-executor-cores 256 --executor-memory 1g \
      -- preprocess --input ...
  launch/spark_submit.sh --master yarn --num-executors 64 --executor-cores 4 --executor-memory 1g \
      --conf spark.executor.memoryOverhead=6g -- preprocess --input ...
  PYSPARK_PYTHON=./kaiyuan/bin/python launch/spark_submit.sh --master yarn --archives kaiyuan.tar.gz#kaiyuan ... \
      -- preprocess --input ...          # an environment that YARN unpacks on each host, made with venv-pack or conda-pack
  PYSPARK_PYTHON=/opt/kaiyuan/bin/python launch/spark_submit.sh --master k8s://https://node0:6443 --executor-memory 1g \
      --conf spark.kubernetes.container.image=IMAGE --conf spark.executor.instances=64 \
      --conf spark.kubernetes.executor.volumes.persistentVolumeClaim.data.mount.path=/data \
      --conf spark.kubernetes.executor.volumes.persistentVolumeClaim.data.options.claimName=data \
      -- preprocess --input /data/...    # from a pod that mounts the same volume

SPARK_HOME names another Spark than that of the installed PySpark; both must have the same version. Java 17 or 21 is found by
JAVA_HOME or PATH. spark.default.parallelism sets the number of partitions (default: one a task); the result is the same.
SIGTERM or ctrl-C ends the driver and with it all executors; the same command continues where it was.
Exit code: that of the command: 0, 2 for a mistake or a failed job, with one line about it, 130 after ctrl-C, 143 after SIGTERM.
END
}

master="${SPARK_MASTER:-}" dry_run='' options=()
while (($#)); do
    case "$1" in
        -h | --help) usage; exit ;;
        --dry-run) dry_run=yes ;;
        --master=*) master="${1#*=}" ;;
        --master)
            (($# > 1)) || fail "--master needs a value"
            master="$2"
            shift
            ;;
        --) break ;;
        *) options+=("$1") ;;
    esac
    shift
done
(($# > 1)) || fail "after the options of Spark, give -- and a command of kaiyuan-data"
shift
[[ ! " ${options[*]} " =~ \ --deploy-mode[\ =]cluster\  ]] ||
    fail "--deploy-mode cluster: the driver runs where this script runs; start it on a host of the cluster"
[[ -z $master ]] || options=(--master "$master" "${options[@]}")

use_project_environment
python -c 'import pyspark' 2>/dev/null || fail "this Python has no pyspark: pip install 'pyspark>=4,<5'"
# PySpark starts spark-submit with these; so the command itself is the driver, with its own output, signals and exit code.
PYSPARK_SUBMIT_ARGS="$(python -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))' "${options[@]}" pyspark-shell)"
PYSPARK_PYTHON="${PYSPARK_PYTHON:-$(command -v python)}"
export PYSPARK_SUBMIT_ARGS PYSPARK_PYTHON
unset SPARK_MASTER
command=(python -m data_tools "$1" --engine spark "${@:2}")
say "launch: PYSPARK_PYTHON=${PYSPARK_PYTHON@Q} PYSPARK_SUBMIT_ARGS=${PYSPARK_SUBMIT_ARGS@Q} ${command[*]@Q}"
[[ -z $dry_run ]] || exit 0
# In place of this shell, so that a signal to its process id reaches the driver. Java ends when the driver does.
exec "${command[@]}"
