"""All targets."""

from __future__ import annotations

from tests.fuzz import phase_targets

TARGETS = (*phase_targets.TARGETS,)
