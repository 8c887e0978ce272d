#!/bin/sh
# LiteLLM's proxy in an environment of its own, kept between runs: it pins versions that fednode does not want.
# Prints the folder. A finished environment of the same version is left alone; LITELLM_VERSION asks for another one.
set -eu
version=${LITELLM_VERSION:-1.105.7}
folder=${FEDNODE_LITELLM_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/fednode/litellm}
mark=$folder/installed

if [ "$(cat "$mark" 2>/dev/null || true)" = "$version" ]; then
    echo "$folder"
    exit 0
fi
python=$(command -v python3.12 || command -v python3.11 || command -v python3.13 || command -v python3)
rm -rf "$folder"
mkdir -p "$folder"
"$python" -m venv "$folder" >&2
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check "litellm[proxy]==$version" >&2
"$folder/bin/python" -c 'import litellm.proxy.proxy_cli' >&2    # half an installation is none
printf '%s\n' "$version" >"$mark"
echo "$folder"
