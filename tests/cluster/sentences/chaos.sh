# Everything at once, at random, under load. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_chaos() {
  sentence every_failure_is_accounted_for "faults at random under load cost only requests to a pod whose proxy was killed"
  sentence a_restarted_node_comes_back "a node that is restarted comes back with every pod in the mesh"
}

# Seconds of it; the seed is printed, and SEED repeats it.
readonly CHAOS_SECONDS=${BYRNIE_CHAOS_SECONDS:-60}

every_failure_is_accounted_for() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be killed from here" && exit 77; }
  local seed=${SEED:-$RANDOM} end which
  echo "figure: SEED=$seed"
  RANDOM=$seed
  ensure_rolling
  : > "$work/outages"
  begin_load roll steady server:80
  end=$((SECONDS + CHAOS_SECONDS))
  while ((SECONDS < end)); do
    which=$(((RANDOM % 2) ? 0 : 1))
    case $((RANDOM % 8)) in
      0) kubectl -n roll rollout restart deploy/server ;;
      1) kubectl -n roll scale deploy/server --replicas=$((RANDOM % 3 + 2)) ;;
      2 | 3) kill_a_proxy ;;
      4) lose_replica "${COMPONENTS[$which]}" ;;
      5) freeze_replica "${COMPONENTS[$which]}" ;;
      6) cut_replica_off "${COMPONENTS[$which]}" ;;
      7) freeze_for 3 "$(pgrep -x kube-apiserver)" ;;
    esac
    # Two restarts within one second are refused by kubectl.
    sleep $((RANDOM % 3 + 1))
  done
  kubectl -n roll scale deploy/server --replicas=3
  ready roll deploy/server
  ready byrnie-system deploy/byrnie-control-plane deploy/byrnie-injector
  end_load_of_chaos
  eventually 5 "$BYRNIE" check
}

readonly COMPONENTS=(control-plane injector)

# One of a component's pods goes at once and without a farewell.
lose_replica() { kubectl -n byrnie-system delete "pod/$(replica "$1")" --wait=false --grace-period=0 --force; }

# It does not run for some seconds, and keeps its sockets.
freeze_replica() {
  local pid
  pid=$(processes_of byrnie-system "$(replica "$1")" "byrnie-$1")
  [[ -z $pid ]] || freeze_for 3 "$pid"
}

freeze_for() {
  kill -STOP "$2"
  sleep "$1"
  kill -CONT "$2"
}

# Its packets go nowhere for some seconds: the node's end of its cable is down.
cut_replica_off() {
  local pid index cable
  pid=$(processes_of byrnie-system "$(replica "$1")" "byrnie-$1")
  [[ -n $pid ]] || return 0
  index=$(nsenter --target "$pid" --net ip -o link show eth0 | sed -n 's/.*eth0@if\([0-9]*\):.*/\1/p')
  cable=$(ip -o link | sed -n "s/^$index: \([^@:]*\).*/\1/p")
  ip link set "$cable" down
  sleep 4
  # Its pod may have gone meanwhile.
  ip link set "$cable" up || true
}

replica() {
  kubectl -n byrnie-system get pods -l "app.kubernetes.io/component=$1" -o json |
    jq -er --argjson at $RANDOM '[.items[] | select(.status.phase == "Running" and .metadata.deletionTimestamp == null)] | .[$at % length].metadata.name'
}

# What ran through that proxy is cut, and until it is back its pod refuses. Written down with both times, in ms.
kill_a_proxy() {
  local pod pid begun
  pod=$(pod_of roll server)
  pid=$(processes_of roll "$pod" byrnie-proxy)
  [[ -n $pid ]] || return 0
  begun=$(now)
  kill -9 "$pid"
  # A pod that is rolled away meanwhile does not come back, and need not.
  until is_ready_again roll "$pod" "$pid"; do sleep 0.2; done
  echo "$begun $(now)" >> "$work/outages"
}

# is_ready_again NAMESPACE POD PID: it has gone, or is ready with another proxy than of that process.
is_ready_again() {
  local found
  found=$(kubectl -n "$1" get pod "$2" -o 'jsonpath={.metadata.deletionTimestamp}{.status.conditions[?(@.type=="Ready")].status}' 2> /dev/null) || return 0
  [[ $found != *Z* ]] || return 0
  found+=$(processes_of "$1" "$2" byrnie-proxy)
  [[ $found == True[0-9]* && $found != "True$3" ]]
}

# A request that failed must have begun while a proxy was away, or in the second before.
end_load_of_chaos() {
  local at unexplained=0
  inside roll steady touch /tmp/stop
  eventually 5 has_ended roll steady
  kubectl -n roll logs steady -c app > "$work/steady.out"
  tail -n 20 "$work/steady.out"
  echo "figure: $(grep ' good, ' "$work/steady.out"); proxies were killed at (ms, until ms): $(paste -sd ';' "$work/outages")"
  while read -r at; do
    if ! awk -v at="$at" '$1 - 1000 <= at && at <= $2 { found = 1 } END { exit !found }' "$work/outages"; then
      echo "a request that began at $at failed, and no proxy was away then"
      unexplained=$((unexplained + 1))
    fi
  done < <(sed -n 's/^at \([0-9]*\) ms: .*/\1/p' "$work/steady.out")
  ((!unexplained)) || fail "$unexplained requests failed without a reason"
  grep '^[1-9][0-9]* good, ' "$work/steady.out" || fail "no request was answered"
  kubectl -n roll delete pod steady --wait=false
}

a_restarted_node_comes_back() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "the node can't be restarted from here" && exit 77; }
  local begun
  begun=$(now)
  touch "$BYRNIE_NODE/run/restart"
  until [[ ! -e $BYRNIE_NODE/run/restart ]]; do sleep 0.2; done
  eventually 12 "$BYRNIE" check
  eventually 4 get shop teller http://web/
  echo "figure: $(($(now) - begun)) ms from the node's end until check was green and the shop answered"
  edge shop teller web || eventually 6 edge shop teller web
  turned_away legacy stranger http://web.shop/
}
