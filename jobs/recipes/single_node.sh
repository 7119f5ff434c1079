#!/usr/bin/env bash
# One run on this machine, with all its GPUs (or cores); begun again when something kills it.
#
#   jobs/recipes/single_node.sh +dataset=webvid 'dataset.shards=/data/webvid/*.tar' \
#       +tokenizer=fsq_4x8x8 tokenizer.checkpoint=auto output.root=/data/tokens
#   ATTEMPTS=10 jobs/recipes/single_node.sh …      # 3 unless said otherwise
#
# Cost:     this machine's.
# Time:     the demo's 19 clips: 25 s on two cores, killed once and begun again. On GPUs: not measured.
# Output:   the summary of the run; exit code 0 when every shard is whole, 1 when not or after a
#           mistake in the command, 128 + signal when the last attempt was killed.
# Resuming: run the same line again; only what has no receipt is done.
# Tried:    by tests, on two cores: the demo to its end; killed and begun again; SIGTERM and Ctrl-C.
#           NOT on a machine with GPUs.
#
# Run it from the project's folder with its environment activated.
set -euo pipefail
set -m # Ctrl-C then reaches this shell alone, which tells the driver once; twice means "at once"

driver=
is_ending=
end_driver() {
    is_ending=yes
    [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true
}
trap end_driver INT TERM

for ((attempt = 1; ; attempt++)); do
    python -m pipeline.run cluster=local "$@" &
    driver=$!
    [[ -z $is_ending ]] || end_driver # it was told so before the driver had a number
    code=0
    wait "$driver" || code=$?
    if [[ $is_ending ]]; then # the signal ended `wait`; the driver still commits what is open
        code=0
        wait "$driver" || code=$?
        exit "$code"
    fi
    # A code below 128 is the driver's own word: done, incomplete, or a mistake to be mended.
    ((code >= 128 && attempt < ${ATTEMPTS:-3})) || exit "$code"
    echo "single_node: the driver was killed (code $code); it goes on behind its receipts" >&2
done
