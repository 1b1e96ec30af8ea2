"""launch/k8s: pods started as the operators start them, but for --dry-run.

The manifests were validated by hand against the CRDs of Kubeflow's Trainer 2.0 to 2.3, JobSet 0.8 and 0.9, and the
training operator 1.9, with unknown fields refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.processes.launched import ROOT, started

K8S = ROOT / "launch" / "k8s"


def manifest(name: str, kind: str) -> dict[str, Any]:
    (found,) = [one for one in yaml.safe_load_all((K8S / name).read_text()) if one["kind"] == kind]
    return found


def job_of_pods(name: str) -> dict[str, Any]:
    """The specification of the one Job with a pod a node."""
    if name == "jobset.yaml":
        spec = manifest(name, "JobSet")["spec"]
    else:
        spec = manifest(name, "TrainingRuntime")["spec"]["template"]["spec"]
    (job,) = spec["replicatedJobs"]
    return {**job["template"]["spec"], "name": job["name"], "failurePolicy": spec["failurePolicy"]}


def command_of(words: list[str], environ: dict[str, str], recipe: Path) -> str:
    """The command that a pod's own would start, without quotes."""
    replaced = [str(recipe) if word == "/data/train.yaml" else word for word in words]
    assert replaced[0] == "launch/torchrun.sh" and str(recipe) in replaced
    with started([*replaced[:1], "--dry-run", *replaced[1:]], environ, ROOT) as pod:
        code, output, errors = pod.finish()
    assert code == 0, errors
    return next(line for line in output.splitlines() if line.startswith("launch: ")).replace("'", "")


def test_pod_of_a_trainjob(recipe: Path) -> None:
    trainer = manifest("trainjob.yaml", "TrainJob")["spec"]["trainer"]
    assert trainer["numNodes"] == manifest("trainjob.yaml", "TrainingRuntime")["spec"]["mlPolicy"]["numNodes"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]
    given = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "kaiyuan-node-0-0.kaiyuan",
        "PET_MASTER_PORT": "29400",
    }
    command = command_of(trainer["command"], given, recipe)
    where = "--nnodes 2 --node-rank 1 --rdzv-backend static --rdzv-endpoint kaiyuan-node-0-0.kaiyuan:29400"
    assert f"{where} --nproc-per-node 1" in command


def test_pod_of_a_jobset(recipe: Path) -> None:
    job = job_of_pods("jobset.yaml")
    name = manifest("jobset.yaml", "JobSet")["metadata"]["name"]
    (container,) = job["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value", "1") for entry in container["env"]}
    assert int(given["NNODES"]) == job["parallelism"] == job["completions"]
    assert int(given["NPROC_PER_NODE"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert given["RDZV_ENDPOINT"] == f"{name}-{job['name']}-0-0.{name}:29500"
    command = command_of(container["command"], {**given, "NPROC_PER_NODE": "1"}, recipe)
    assert f"--nnodes 2 --node-rank 1 --rdzv-backend static --rdzv-endpoint {given['RDZV_ENDPOINT']}" in command


@pytest.mark.parametrize("name", ["jobset.yaml", "trainjob.yaml"])
def test_ends_of_a_pod(name: str) -> None:
    """A mistake ends all; time to save; what the runs of all pods need is there."""
    job = job_of_pods(name)
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    (verdict,) = job["failurePolicy"]["rules"]
    assert (verdict["action"], verdict["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # Kubernetes takes a podFailurePolicy with this alone.
    assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)
    assert pod["terminationGracePeriodSeconds"] > 120
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["jobset.yaml", "trainjob.yaml", "pytorchjob.yaml"])
def test_lines_for_schedulers_are_valid_yaml(name: str) -> None:
    """What the comments show is a key of where it stands."""
    lines = (K8S / name).read_text().splitlines()
    shown = [line for line in lines if "kueue.x-k8s.io/queue-name" in line]
    uncommented = (K8S / name).read_text().replace(shown[0], shown[0].replace("# ", "", 1))
    metadata = [one["metadata"] for one in yaml.safe_load_all(uncommented) if one["kind"] != "TrainingRuntime"]
    assert [one["labels"] for one in metadata] == [{"kueue.x-k8s.io/queue-name": "training"}]
