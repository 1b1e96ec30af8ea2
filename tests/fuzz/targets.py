"""All targets."""

from __future__ import annotations

from tests.fuzz import (
    capsule_targets,
    checkpoint_targets,
    cluster_targets,
    corpus_targets,
    hugging_face_targets,
    input_targets,
    model_targets,
    phase_targets,
    recipe_targets,
    record_targets,
    restore_targets,
    run_targets,
    tokenizer_targets,
)

TARGETS = (
    *recipe_targets.TARGETS,
    *phase_targets.TARGETS,
    *corpus_targets.TARGETS,
    *capsule_targets.TARGETS,
    *checkpoint_targets.TARGETS,
    *restore_targets.TARGETS,
    *tokenizer_targets.TARGETS,
    *record_targets.TARGETS,
    *run_targets.TARGETS,
    *cluster_targets.TARGETS,
    *input_targets.TARGETS,
    *model_targets.TARGETS,
    *hugging_face_targets.TARGETS,
)
