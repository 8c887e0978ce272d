#!/bin/sh
# Starts fednode in its container. `run` (the default) writes a node on the first start; any other command is fednode's.
#
#   FEDNODE_NAME, FEDNODE_COLLECTIVE, FEDNODE_CITY   what the node is called when it is first written
#   FEDNODE_ROSTER, FEDNODE_ROSTER_SIZE              a folder shared by that many nodes, in which each leaves its public
#                                                    peers.toml stanza and reads the others' (demonstrations only)
#   FEDNODE_CONFIG                                   the node.toml to run, /node/node.toml in the image; the node is its folder
#   FEDNODE_MOUNTED                                  a node.toml that replaces the written one at every start, if it exists;
#                                                    keys live in the node's folder alone and are never replaced
set -eu

CONFIG=${FEDNODE_CONFIG:-/node/node.toml}
NODE=${CONFIG%/*}
MOUNTED=${FEDNODE_MOUNTED:-/etc/fednode/node.toml}
ROSTER_WAIT_S=60 # three containers are up within seconds; more means that one of them will not come

if [ "${1:-run}" != run ]; then
    exec fednode "$@"
fi
[ $# -eq 0 ] || shift

if [ ! -e "$CONFIG" ]; then
    fednode init "$NODE" \
        --name "${FEDNODE_NAME:-$(hostname)}" \
        --collective "${FEDNODE_COLLECTIVE:-my-collective}" \
        --city "${FEDNODE_CITY:-somewhere}"
fi
if [ -r "$MOUNTED" ]; then
    cp "$MOUNTED" "$CONFIG"
fi

# Everybody writes a stanza (node id and addresses, nothing secret), waits for the rest, and lists all but itself.
if [ -n "${FEDNODE_ROSTER:-}" ]; then
    mine="$FEDNODE_ROSTER/${FEDNODE_NAME:?FEDNODE_ROSTER needs FEDNODE_NAME}.toml"
    fednode id --json | python -c 'import json, sys; print(json.load(sys.stdin)["stanza"])' >"$mine.new"
    mv "$mine.new" "$mine"
    waited_s=0
    while [ "$(find "$FEDNODE_ROSTER" -name '*.toml' | wc -l)" -lt "${FEDNODE_ROSTER_SIZE:-1}" ]; do
        if [ "$waited_s" -ge "$ROSTER_WAIT_S" ]; then
            echo "fewer than $FEDNODE_ROSTER_SIZE nodes in $FEDNODE_ROSTER after $ROSTER_WAIT_S s; starting without the rest" >&2
            break
        fi
        sleep 1
        waited_s=$((waited_s + 1))
    done
    find "$FEDNODE_ROSTER" -name '*.toml' ! -path "$mine" -exec cat {} + >"$NODE/peers.toml"
fi

exec fednode run --config "$CONFIG" "$@"
