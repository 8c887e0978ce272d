#!/bin/sh
# Put LiteLLM's proxy into an environment of its own, once: it pins versions that fednode does not want.
#
#   FEDNODE_LITELLM_VENV   where; ${XDG_CACHE_HOME:-~/.cache}/fednode/litellm if unset
#   LITELLM_VERSION        another version than the pinned one
#
# Some 500 MB and a minute or two the first time. Prints the folder. A stamp written last names what is installed.
set -eu

version=${LITELLM_VERSION:-1.100.5}
venv=${FEDNODE_LITELLM_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/fednode/litellm}
stamp="$venv/fednode.stamp"

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$version" ]; then
    echo "$venv"
    exit 0
fi

python=
for candidate in python3.12 python3.11 python3.13 python3; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || { echo 'litellm: needs Python 3.11 or newer with venv' >&2; exit 1; }

mkdir -p "$(dirname -- "$venv")"
"$python" -m venv --clear "$venv" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "litellm[proxy]==$version" >&2
LITELLM_LOCAL_MODEL_COST_MAP=True "$venv/bin/python" -c 'import litellm.proxy.proxy_cli' >&2    # half an installation is none
printf '%s\n' "$version" >"$stamp"
echo "$venv"
