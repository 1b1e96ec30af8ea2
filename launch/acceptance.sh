#!/usr/bin/env bash
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
Twenty checks of this node, one line each, and a record to send back: ACCEPTANCE/acceptance.json. Half an hour on eight
NPUs; nothing else may use them meanwhile.

  launch/acceptance.sh [options of kaiyuan doctor --acceptance]

  --output FOLDER   of the record (default: acceptance); the same command continues there and runs again what failed
  --only NAME...    some of the checks
  --ranks N         devices to use (default: all)
  --recipe RECIPE   trained for one step by the last check (default: Kaiyuan-2B)

Example: launch/acceptance.sh --output acceptance-node7

Exit code: 0, 1 when a check failed, 2 for a mistake.
END
}

case "${1:-}" in
    -h | --help) usage; exit ;;
esac
find_devices
use_project_environment
exec python -m megatron_kaiyuan.cli doctor --acceptance --platform "$platform" "$@"
