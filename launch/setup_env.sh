# shellcheck shell=sh
# Makes the project's virtual environment, or reuses it, and puts it first on PATH. To be sourced from bash, zsh or sh:
#   source launch/setup_env.sh          what runs need
#   source launch/setup_env.sh --dev    what the tests and the checks of style need, too
# launch/make_env.sh does the work and names the variables that decide about it; it can be called without this file, as
# with `sh`, whose `.` hands on no words: bash launch/make_env.sh --dev, then . launch/setup_env.sh

# The place of this file: each shell says it in its own way, and sh in none.
if [ -n "${BASH_VERSION:-}" ]; then
    # shellcheck disable=SC2128,SC3028,SC3054 # the first element, in a notation that sh can read
    kaiyuan_root="$BASH_SOURCE"
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval 'kaiyuan_root="${(%):-%x}"'
else
    kaiyuan_root=launch/setup_env.sh
fi
# `cd` may be an alias, and print where it went.
kaiyuan_root="$(unset CDPATH && \cd "$(dirname "$kaiyuan_root")/.." >/dev/null && pwd)"

kaiyuan_set_up() { # [--dev]
    if [ ! -f "$kaiyuan_root/launch/make_env.sh" ]; then
        echo "error: set-up: this shell does not say where the file that it reads is: do it in the project's folder" >&2
        return 1
    fi
    kaiyuan_venv="${KAIYUAN_VENV:-$kaiyuan_root/.venv}"
    case "$kaiyuan_venv" in
        /*) ;;
        *) kaiyuan_venv="$PWD/$kaiyuan_venv" ;;
    esac
    # A caller's own arguments are seen here where it gave none to this file.
    case "${1:-}" in
        --dev) KAIYUAN_VENV="$kaiyuan_venv" bash "$kaiyuan_root/launch/make_env.sh" --dev || return 1 ;;
        *) KAIYUAN_VENV="$kaiyuan_venv" bash "$kaiyuan_root/launch/make_env.sh" || return 1 ;;
    esac
    case ":$PATH:" in
        ":$kaiyuan_venv/bin:"*) ;;
        *) PATH="$kaiyuan_venv/bin:$PATH" ;;
    esac
    VIRTUAL_ENV="$kaiyuan_venv"
    export PATH VIRTUAL_ENV
    unset PYTHONHOME
}

kaiyuan_set_up "$@"
