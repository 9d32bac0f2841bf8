#!/usr/bin/env bash
# Distills on the GPUs of this node, or as one of several nodes.
#
#   examples/launch/torchrun.sh CONFIG [OPTION...]
#
# takes the arguments of `pdmd distill`. On several nodes, run it on each with the same arguments:
#
#   NNODES=2 RDZV_ENDPOINT=node0:29500 examples/launch/torchrun.sh CONFIG [OPTION...]
#
# Environment variables:
#
#   NPROC_PER_NODE  ranks on this node (default: gpu, one per GPU; on CPUs, a number)
#   NNODES          number of nodes (default: 1), or a range such as 2:4, within which a run goes on with
#                   those that are left when one dies
#   RDZV_ENDPOINT   rendezvous HOST:PORT, where HOST is one of the nodes; the same on all of them,
#                   required for several nodes
#   RDZV_ID         name of the run, the same on all nodes (default: pdmd)
#   MAX_RESTARTS    how often the ranks are started again when one of them dies (default: 0); the
#                   run then goes on from its newest checkpoint
#   GRACE           seconds that the ranks have to write a checkpoint after a signal
#                   (default: 600)
#
# On SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) the run saves a checkpoint and exits. Only the first signal is
# forwarded: a rank that receives two exits without saving. Exit codes: 0; 130 if the run was
# interrupted; otherwise torchrun's, which is 1 whatever the ranks' codes: its report lists those.

set -euo pipefail

if (($# == 0)) || [[ $1 == -* ]]; then
    echo "usage: $0 CONFIG [OPTION...], as for pdmd distill" >&2
    exit 2
fi

nodes=${NNODES:-1}
words=(--nnodes "$nodes" --nproc-per-node "${NPROC_PER_NODE:-gpu}")
if [[ $nodes != 1 ]]; then
    endpoint=${RDZV_ENDPOINT:?is required for several nodes: HOST:PORT of one of them}
    words+=(--rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "${RDZV_ID:-pdmd}")
else
    words+=(--standalone)
fi

if [[ -n ${MAX_RESTARTS:-} ]]; then
    words+=(--max-restarts "$MAX_RESTARTS")
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # or restarted ranks read what dead ones wrote
fi

stopping=
pid=
stop() {
    if [[ -z $stopping && -n $pid ]]; then
        stopping=yes
        kill -TERM "$pid" 2>/dev/null || true
    fi
}
trap stop TERM INT USR1

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-600}
set -m # torchrun in its own process group: only this script receives Ctrl-C
torchrun "${words[@]}" -m pdmd distill "$@" &
pid=$!
set +m

code=0
wait "$pid" || code=$?
while kill -0 "$pid" 2>/dev/null; do # a signal interrupts wait before the process has finished
    code=0
    wait "$pid" || code=$?
done
if [[ -n $stopping && $code != 0 ]]; then
    code=130
fi
exit "$code"
