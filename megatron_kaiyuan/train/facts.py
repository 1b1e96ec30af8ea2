"""What all ranks have to agree on before any of them builds something."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from megatron_kaiyuan.config import RunConfig
from megatron_kaiyuan.config.compare import flatten
from megatron_kaiyuan.files import checksum
from megatron_kaiyuan.versions import source_fingerprint, versions


def start_facts(run: RunConfig, fused: Collection[str] = ()) -> dict[str, str]:
    """Code, library versions, every field of the resolved recipe, and the phases as their manifests describe them.

    A manifest holds the checksums of the phase's files and the fingerprints of its corpora.

    Args:
        fused: operations of which this rank's device has a kernel of its own: tensor-parallel ranks that differ would
            compute different norms of the same activations.
    """
    recipe = flatten(run.model_dump(mode="json"))
    kernels = [operation for operation, wanted in run.backend if wanted in ("auto", "npu") and operation in fused]
    return {
        "the code of megatron_kaiyuan": source_fingerprint(),
        **versions(),
        "the list of fused kernels that work": ", ".join(kernels) or "empty",
        **{field: json.dumps(value) for field, value in recipe.items()},
        **{f"{phase.path}/manifest.json": _fingerprint(phase.path / "manifest.json") for phase in run.data.phases},
    }


def _fingerprint(manifest: Path) -> str:
    return checksum(manifest) if manifest.is_file() else "missing"
