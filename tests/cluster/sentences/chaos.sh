# Faults while everything is in use. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_chaos() {
  sentence faults_in_a_rollout_cost_nothing "a control plane and an injector that are killed, slow or cut off during a rollout cost no request"
  sentence every_failure_is_accounted_for "faults at random under load cost only requests to a pod whose proxy was killed"
  sentence a_restarted_node_comes_back "a node that is restarted comes back with every pod in the mesh"
}

# Seconds of faults at random; BYRNIE_CHAOS_SECONDS=1800 is half an hour of them. The seed is printed, and SEED repeats it.
readonly CHAOS_SECONDS=${BYRNIE_CHAOS_SECONDS:-45}

faults_in_a_rollout_cost_nothing() {
  local fault
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be killed from here" && exit 77; }
  ensure_rolling
  begin_load roll steady server:80
  for fault in kill_replica freeze_replica cut_replica_off; do
    kubectl -n roll rollout restart deploy/server
    $fault control-plane 0
    $fault injector 0
    ready roll deploy/server
  done
  end_load roll steady
  lost_nothing steady
  ready byrnie-system deploy/byrnie-control-plane deploy/byrnie-injector
  eventually 5 "$BYRNIE" check
}

every_failure_is_accounted_for() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be killed from here" && exit 77; }
  local seed=${SEED:-$RANDOM} end component
  echo "figure: SEED=$seed"
  RANDOM=$seed
  ensure_rolling
  : > "$work/outages"
  begin_load roll steady server:80
  end=$((SECONDS + CHAOS_SECONDS))
  while ((SECONDS < end)); do
    component=control-plane
    ((RANDOM % 2)) || component=injector
    case $((RANDOM % 8)) in
      0) kubectl -n roll rollout restart deploy/server ;;
      1) kubectl -n roll scale deploy/server --replicas=$((RANDOM % 3 + 2)) ;;
      2 | 3) kill_a_proxy $RANDOM ;;
      4) kill_replica $component $RANDOM ;;
      5) freeze_replica $component $RANDOM ;;
      6) cut_replica_off $component $RANDOM ;;
      7) freeze_for 3 "$(pgrep -x kube-apiserver)" ;;
    esac
    # Two restarts within one second are refused by kubectl.
    sleep $((RANDOM % 3 + 1))
  done
  kubectl -n roll scale deploy/server --replicas=3
  ready roll deploy/server
  ready byrnie-system deploy/byrnie-control-plane deploy/byrnie-injector
  end_load roll steady
  account_for_failures
  eventually 5 "$BYRNIE" check
}

# kill_replica COMPONENT NUMBER: the process of one of its pods ends at once.
kill_replica() {
  local pid
  pid=$(process_of_replica "$@")
  kill -9 "$pid"
}

# It does not run for some seconds, and keeps its sockets.
freeze_replica() { freeze_for 3 "$(process_of_replica "$@")"; }

freeze_for() {
  kill -STOP "$2"
  sleep "$1"
  # Its pod may have gone meanwhile.
  kill -CONT "$2" || true
}

# Its packets go nowhere for some seconds: the node's end of its cable is down.
cut_replica_off() {
  local pid index cable
  pid=$(process_of_replica "$@")
  index=$(nsenter --target "$pid" --net ip -o link show eth0 | sed -n 's/.*eth0@if\([0-9]*\):.*/\1/p')
  cable=$(ip -o link | sed -n "s/^$index: \([^@:]*\).*/\1/p")
  ip link set "$cable" down
  sleep 4
  ip link set "$cable" up || true
}

process_of_replica() {
  local pod
  eventually 6 one_of byrnie-system "app.kubernetes.io/component=$1" "$2" > /dev/null
  pod=$(one_of byrnie-system "app.kubernetes.io/component=$1" "$2")
  echo "$1: $pod" >&2
  processes_of byrnie-system "$pod" "byrnie-$1"
}

# one_of NAMESPACE LABEL NUMBER: a pod that is ready and is not about to end.
one_of() {
  kubectl -n "$1" get pods -l "$2" -o json | jq -er --argjson at "$3" '[.items[]
    | select(.metadata.deletionTimestamp == null and any(.status.conditions[]?; .type == "Ready" and .status == "True"))]
    | .[$at % length].metadata.name'
}

# What ran through that proxy is cut, and until it is back its pod refuses. Written down with both times, in ms.
kill_a_proxy() {
  local pod pid restarts begun
  pod=$(one_of roll app=server "$1")
  pid=$(processes_of roll "$pod" byrnie-proxy)
  restarts=$(restarts_of_proxy roll "$pod")
  begun=$(now)
  kill -9 "$pid"
  # Where it has been killed before, the kubelet waits for 10 s, 20 s and so on.
  eventually 12 is_back_or_gone "$pod" "$restarts"
  echo "$begun $(now)" >> "$work/outages"
}

is_back_or_gone() {
  local found
  found=$(kubectl -n roll get pod "$1" --ignore-not-found -o name) || return 1
  [[ -n $found ]] || return 0
  (($(restarts_of_proxy roll "$1") > $2)) && kubectl -n roll wait --for=condition=Ready "pod/$1" --timeout=1s
}

# A request that failed must have begun while a proxy was away, or in the second before; and as its pod refuses, none waits.
account_for_failures() {
  local at why said unexplained=0 told=0
  echo "figure: proxies were killed at (ms, until ms): $(paste -sd ';' "$work/outages")"
  while read -r _ at _ why; do
    told=$((told + 1))
    if [[ $why == *"no answer within"* ]] ||
      ! awk -v at="$at" '$1 - 1000 <= at && at <= $2 { found = 1 } END { exit !found }' "$work/outages"; then
      echo "a request that began at $at failed, and no killed proxy explains it: $why"
      unexplained=$((unexplained + 1))
    fi
  done < <(grep '^at [0-9]* ms: ' "$work/steady.out")
  said=$(sed -n 's/^[1-9][0-9]* good, \([0-9]*\) failed$/\1/p' "$work/steady.out")
  [[ -n $said ]] || fail "no request was answered"
  ((told == said)) || fail "$said requests failed, and it is told of $told"
  ((!unexplained)) || fail "$unexplained requests failed without a reason"
}

a_restarted_node_comes_back() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "the node can't be restarted from here" && exit 77; }
  local begun
  begun=$(now)
  touch "$BYRNIE_NODE/run/restart"
  eventually 12 has_restarted
  eventually 12 all_proxies_are_new $((begun / 1000))
  eventually 12 "$BYRNIE" check
  echo "figure: $(($(now) - begun)) ms from the node's end until every proxy was back and check was green"
  ready legacy pod/stranger
  eventually 4 get shop teller http://web/
  eventually 6 edge shop teller web
  turned_away legacy stranger http://web.shop/
}

has_restarted() { [[ ! -e $BYRNIE_NODE/run/restart ]]; }

# all_proxies_are_new SECONDS: of the pods that run, each has a proxy that is ready and has begun since then. Names those that
# have not.
all_proxies_are_new() {
  local pods old
  pods=$(kubectl get pods -A -o json) && old=$(jq -r --argjson since "$1" '.items[]
    | select(any(.spec.initContainers[]?; .name == "byrnie-proxy") and .metadata.deletionTimestamp == null
        and (.status.phase | IN("Succeeded", "Failed") | not))
    | select(any(.status.initContainerStatuses[]?; .name == "byrnie-proxy" and .ready
        and (.state.running.startedAt // "1970-01-01T00:00:00Z" | fromdate) >= $since) | not)
    | "\(.metadata.namespace)/\(.metadata.name) \(.status.phase)"' <<< "$pods") || return 1
  [[ -z $old ]] || { echo "$old" && return 1; }
}
