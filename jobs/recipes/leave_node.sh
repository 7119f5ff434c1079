#!/usr/bin/env bash
# Run on a Ray node that is about to go: the driver takes its shards back, which commits what is open.
#
#   jobs/recipes/leave_node.sh SECONDS            now; ends when SECONDS have passed
#   jobs/recipes/leave_node.sh --on-spot-notice   waits for AWS to announce the end, two minutes before
#
# The first is the preStop of kuberay_rayjob.yaml, the second runs beside every worker of
# ray_aws_spot.yaml. RAY_ADDRESS (HOST:PORT of the head) and the cluster's token must be there.
#
# Cost:     a request to the machine's metadata service every five seconds.
# Time:     tells the driver within seconds; then waits, so that the node is not ended earlier.
# Output:   one line.
# Resuming: nothing to resume: other nodes go on with the shards, behind their last segments.
# Tried:    by hand, `ray drain-node` on a node of this machine; by tests, with ray and curl replaced.
#           NOT on Kubernetes, NOT on AWS.
set -euo pipefail

METADATA=http://169.254.169.254/latest

is_announced() {
    local token
    token=$(curl -sf -m 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 60" "$METADATA/api/token") &&
        curl -sf -m 2 -o /dev/null -H "X-aws-ec2-metadata-token: $token" \
            "$METADATA/meta-data/spot/instance-action"
}

case ${1:-} in
--on-spot-notice)
    until is_announced; do sleep 5; done
    seconds=110
    ;;
'' | *[!0-9]*)
    echo "error: SECONDS, a whole number, or --on-spot-notice; got '${1:-}'" >&2
    exit 2
    ;;
*) seconds=$1 ;;
esac

ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the machine is about to go" \
    --deadline-remaining-seconds "$seconds"
echo "leave_node: the driver was told; $seconds s are left"
sleep "$seconds"
