# shellcheck shell=sh
# Sourced by the other scripts: makes virtual environments. POSIX shell, needs only Python.
#
#   find_python                   sets $python to a Python 3.11 to 3.13 ($PYTHON is tried first)
#   environment DIR SPEC COMMAND  makes the virtual environment DIR and runs COMMAND (a shell
#                                 function that installs into $DIR) unless that was done before
#                                 with the same SPEC (any words) and the same setup.cfg

fail() {
    echo "error: $*" >&2
    exit 2
}

find_python() {
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null && return
    done
    fail "no Python 3.11, 3.12 or 3.13 found (tried: ${PYTHON:-python3, python3.13, python3.12," \
        "python3.11}); install one, or name it: PYTHON=/path/to/python3.12 sh $0"
}

# On Debian, what makes virtual environments is in a separate package. Root may install it.
install_venv() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    echo "Installing Debian's python3-venv, which this Python needs to make virtual environments ..."
    apt-get update -qq && apt-get install -qq --yes python3-venv >/dev/null &&
        "$python" -c 'import venv, ensurepip' 2>/dev/null
}

environment() {
    directory=$1 specification=$2 command=$3
    find_python
    stamp="$specification $("$python" -V) $(cat setup.cfg pyproject.toml | cksum)"
    [ "$(cat "$directory/installed" 2>/dev/null)" = "$stamp" ] && return
    "$python" -c 'import venv, ensurepip' 2>/dev/null || install_venv ||
        fail "this Python cannot make virtual environments; on Debian: apt-get install python3-venv"
    echo "Making the virtual environment $directory (a few minutes, once) ..."
    rm -rf "$directory"
    "$python" -m venv "$directory" || fail "could not make $directory"
    "$command" "$directory" || fail "could not install the packages; nothing in $directory is kept"
    echo "$stamp" > "$directory/installed"
}

# pip in the environment $1, with only what matters printed.
pip_install() {
    directory=$1
    shift
    "$directory/bin/python" -m pip install --quiet --disable-pip-version-check \
        --root-user-action=ignore "$@"
}
