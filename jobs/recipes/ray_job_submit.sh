#!/usr/bin/env bash
# One run on a Ray cluster that is already there, submitted from any machine that sees its dashboard.
#
#   export RAY_AUTH_TOKEN_PATH=~/.ray/auth_token       # the cluster's own token
#   jobs/recipes/ray_job_submit.sh http://HEAD:8265 \
#       +dataset=webvid 'dataset.shards=s3://bucket/webvid/*.tar' +tokenizer=fsq_4x8x8 \
#       tokenizer.checkpoint=auto output.root=s3://bucket/tokens
#
# Cost:     the driver holds no core and no GPU; its workers hold what cluster.* says, to the end.
# Time:     seconds until the driver starts; then the run's. The demo, twice, on two cores: 25 s.
# Output:   the lines of the run, its summary, "Job 'tokenise-…' succeeded"; exit code 0 when every
#           shard is whole. Ctrl-C stops the run in order: what is open is committed first.
# Resuming: submit the same line again; only what has no receipt is done.
# Tried:    by tests against a head on this machine with Ray's token authentication: another token,
#           submission, Ctrl-C, resubmission. NOT against a cluster of several machines.
#
# The project must be installed at the same version on all nodes (see Containerfile). Where the
# dashboard listens on the head alone: ssh -N -L 8265:127.0.0.1:8265 HEAD, and http://127.0.0.1:8265.
set -euo pipefail
set -m # Ctrl-C then reaches this shell alone, which asks the cluster to stop the job

mistake() {
    echo "error: $1" >&2
    exit 2
}

[[ ${1:-} == http://* || ${1:-} == https://* ]] ||
    mistake "the first argument is the cluster's dashboard, http://HEAD:8265; got '${1:-}'"
address=$1
shift
# A relative OUT would lie wherever the head happens to start jobs.
[[ " $*" =~ \ output\.root=[\'\"]?(/|[a-z0-9]+://) ]] ||
    mistake "output.root=… is missing or relative; give a path or URL that every node reaches"

export RAY_AUTH_MODE=token
token_file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[[ ${RAY_AUTH_TOKEN:-} || -s $token_file ]] ||
    mistake "no token: set RAY_AUTH_TOKEN, or put the cluster's token into $token_file"

job=tokenise-$(date -u +%Y%m%dT%H%M%S)-$$
submission=
is_ending=
# shellcheck disable=SC2317,SC2329 # called by the trap
end_job() {
    is_ending=yes
    [[ -z $submission ]] || ray job stop --no-wait --address "$address" "$job" || true
}
trap end_job INT TERM

# Ray kills a job 3 s after it was asked to stop; the run wants cluster.grace_seconds, 30, to commit.
ray job submit --address "$address" --submission-id "$job" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' \
    -- python -m pipeline.run cluster=ray cluster.address=auto "$@" &
submission=$!
code=0
wait "$submission" || code=$?
if [[ $is_ending ]]; then # the signal ended `wait`; the job's last lines are still to come
    code=0
    wait "$submission" || code=$?
fi
# Ray ends with 0 for a job that was stopped, too.
if ((code == 0)) && [[ $(ray job status --address "$address" "$job" 2>&1) != *" succeeded"* ]]; then
    echo "ray_job_submit: $job was stopped; the same line goes on behind its receipts" >&2
    code=1
fi
exit "$code"
