"""Small jobs that only call the roll: each rank is a fork of this process, which has imported torch once.

    roll_call_job.py JOBS    JOBS is a JSON list; prints a JSON list, for each job what every rank came to

A job: `ranks`; `facts` of each rank by number, else none differ; `absent`: ranks that never come; `seconds`: time-out;
`agent`: the store is held by somebody else, as under torchrun; `port`: instead of a free one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from datetime import timedelta
from typing import Any

import torch

from megatron_kaiyuan.cluster import Rank
from megatron_kaiyuan.cluster.start_check import RankMissing, open_store, start_check
from megatron_kaiyuan.errors import UserError


def call(job: dict[str, Any], rank: int, port: int) -> tuple[Any, dict[str, Any]]:
    """One rank's part: the store, and what came of it after how long."""
    began = time.monotonic()
    who = Rank(rank, job["ranks"], rank, job["ranks"], "127.0.0.1", port, "torchrun")
    limit = timedelta(seconds=job.get("seconds", 60))
    result: dict[str, Any] = {"rank": rank, "error": None}
    store = None
    try:
        store = open_store(who, limit)
        start_check(store, who, job.get("facts", {}).get(str(rank), {"code": "same"}), limit)
    except (UserError, RankMissing) as error:
        result |= {"error": type(error).__name__, "message": str(error), "speaker": getattr(error, "speaker", None)}
    result["seconds"] = time.monotonic() - began
    return store, result


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork the ranks and collect what they say. All live until everybody has spoken: one of them holds the store."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = job.get("port") or listener.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    if job.get("agent"):
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    coming = [rank for rank in range(job["ranks"]) if rank not in job.get("absent", [])]
    processes = [fork.Process(target=hold_store, args=(port,))] if job.get("agent") else []
    processes += [fork.Process(target=take_part, args=(job, rank, port, answers)) for rank in coming]
    for process in processes:
        process.start()
    said = [answers.get(timeout=120) for _ in coming]
    for process in processes:
        process.kill()
        process.join()
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    return sorted(said, key=lambda one: one["rank"])


def take_part(job: dict[str, Any], rank: int, port: int, answers: Any) -> None:
    store, result = call(job, rank, port)
    answers.put(result)
    time.sleep(1000)
    del store


def hold_store(port: int) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    time.sleep(1000)
    del store


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.loads(sys.argv[1])]))
