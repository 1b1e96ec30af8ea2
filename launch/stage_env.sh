#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Puts the environment on each node's own disk, as one file that is read in one piece: the imports of a rank otherwise open
thousands of small files on the shared file system.

  launch/stage_env.sh pack FILE [--force]   once: environment, interpreter and project into FILE, which all nodes see
  launch/stage_env.sh use FILE              on a node: unpack FILE, if it is not there yet, and print KAIYUAN_VENV
  launch/stage_env.sh clean                 on a node: remove the unpacked environments that no process uses
  launch/stage_env.sh measure               stats, opens and seconds of a rank's imports

Example: launch/stage_env.sh pack /shared/kaiyuan.tar.zst
         KAIYUAN_STAGED=/shared/kaiyuan.tar.zst launch/train.sh train.yaml

With KAIYUAN_STAGED all scripts of launch/ call `use` themselves. The node's place is KAIYUAN_STAGE_DIR, else SLURM_TMPDIR,
TMPDIR or /tmp. After a change of the environment or of the project's code, pack again: --force replaces FILE.
Needs no root.
END
}

case "${1:-}" in
    -h | --help | '') usage; exit ;;
esac
unset KAIYUAN_STAGED
use_project_environment
exec python -W ignore -m megatron_kaiyuan.staging "$@"
