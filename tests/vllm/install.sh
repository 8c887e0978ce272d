#!/bin/sh
# Put the CPU build of vLLM that the suite runs into its own environment, once.
#
#   FEDNODE_VLLM_VENV   where; ${XDG_CACHE_HOME:-~/.cache}/fednode/vllm if unset
#   PYTHON              the interpreter to build it with; the first of python3.11, 3.12, 3.13 and python3 if unset
#
# 2.3 to 3.5 GB and 2 to 7 minutes the first time, a moment after that: a stamp written last names what is installed.
# Without that stamp whatever lies there was interrupted, or belongs to another lock, and is made anew.
# torch comes from the package index that pip is set up for; where that offers a "+cpu" build, pip prefers it.
set -eu

torch='torch==2.13.0'
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
lock="$here/../../requirements/vllm.lock"
venv=${FEDNODE_VLLM_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/fednode/vllm}
stamp="$venv/fednode.stamp"
log="$venv.log"

say() { printf 'vllm: %s\n' "$*"; }
fail() {
    say "$1" >&2
    [ ! -s "$log" ] || tail -n 20 "$log" >&2
    exit 1
}

wanted=$({ printf '%s\n' "$torch"; cat "$lock"; } | sha256sum | cut -d ' ' -f 1)
ready() { [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; }

if ready; then
    say "ready in $venv"
    exit 0
fi

mkdir -p "$(dirname -- "$venv")"
# One installer at a time; a second one waits, then finds the work done.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$venv.lock"
    flock -w 1200 9 || fail "another install of $venv did not end within 20 minutes"
    if ready; then
        say "ready in $venv"
        exit 0
    fi
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail 'needs Python 3.11 or newer with venv (on Debian: apt install python3-venv)'

: >"$log"
say "making $venv with $("$python" --version 2>&1 | head -n 1)"
rm -f "$stamp"
"$python" -m venv --clear "$venv" >>"$log" 2>&1 || fail "could not make the environment, see $log"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@" >>"$log" 2>&1 9>&-; }

say "installing $torch"
pip install "$torch" || fail "could not install $torch, see $log"
say "installing vLLM and $(grep -c '^[a-z0-9].*==' "$lock") pinned packages"
pip install --no-deps --require-hashes -r "$lock" || fail "could not install requirements/vllm.lock, see $log"
# Not needed for text, and a build of theirs that does not fit torch's breaks the import of vllm.
pip uninstall -y torchvision torchaudio torchcodec triton || true
say 'checking that vLLM can be imported'
(cd / && "$venv/bin/python" -c 'import vllm.entrypoints.openai.api_server') >>"$log" 2>&1 9>&- ||
    fail "vLLM is installed but cannot be imported, see $log"

printf '%s\n' "$wanted" >"$stamp.new"
mv -f "$stamp.new" "$stamp"
say "ready in $venv"
