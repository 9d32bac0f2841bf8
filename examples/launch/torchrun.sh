#!/usr/bin/env bash
# Distills on the GPUs of this node, or as one of several nodes.
#
#   examples/launch/torchrun.sh CONFIG [OPTION...]
#
# takes what `pdmd distill` takes. On several nodes, run it on each with the same arguments:
#
#   NNODES=2 RDZV_ENDPOINT=node0:29500 examples/launch/torchrun.sh CONFIG [OPTION...]
#
# The environment says where it runs:
#
#   NPROC_PER_NODE  ranks on this node (default: gpu, one for each GPU; on CPUs give a number)
#   NNODES          nodes (default: 1)
#   RDZV_ENDPOINT   HOST:PORT where the nodes meet, a host that is one of them; the same on all,
#                   and needed if there are several
#   RDZV_ID         a name for the run, the same on all its nodes (default: pdmd)
#   GRACE           seconds that ranks have for a checkpoint once they are asked to stop
#                   (default: 600)
#
# On SIGTERM or SIGINT (Ctrl-C) the run saves a checkpoint and ends. The first is passed on, and
# once: a rank that hears two stops without saving. Exit codes: 0; 130 if the run was asked to
# stop; otherwise torchrun's, which is 1 whatever the ranks' were: its report names those.

set -euo pipefail

if (($# == 0)) || [[ $1 == -* ]]; then
    echo "usage: $0 CONFIG [OPTION...], as for pdmd distill" >&2
    exit 2
fi

nodes=${NNODES:-1}
words=(--nnodes "$nodes" --nproc-per-node "${NPROC_PER_NODE:-gpu}")
if ((nodes > 1)); then
    endpoint=${RDZV_ENDPOINT:?is needed for several nodes: HOST:PORT of one of them}
    words+=(--rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "${RDZV_ID:-pdmd}")
else
    words+=(--standalone)
fi

stopping=
pid=
stop() {
    if [[ -z $stopping && -n $pid ]]; then
        stopping=yes
        kill -TERM "$pid" 2>/dev/null || true
    fi
}
trap stop TERM INT

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-600}
set -m # torchrun in a process group of its own: Ctrl-C is heard here alone
torchrun "${words[@]}" -m pdmd distill "$@" &
pid=$!
set +m

code=0
wait "$pid" || code=$?
while kill -0 "$pid" 2>/dev/null; do # a signal ends a wait before the process has ended
    code=0
    wait "$pid" || code=$?
done
if [[ -n $stopping && $code != 0 ]]; then
    code=130
fi
exit "$code"
