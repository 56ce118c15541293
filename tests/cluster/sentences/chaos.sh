# Everything at once: faults at random, under load. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_chaos() {
  sentence every_failure_is_accounted_for "faults at random under load cost only requests whose proxy was killed"
}

# Seconds of it; the seed is printed, and SEED repeats it.
readonly CHAOS_SECONDS=${BYRNIE_CHAOS_SECONDS:-45}

every_failure_is_accounted_for() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be killed from here" && exit 77; }
  local seed=${SEED:-$((RANDOM))} code=0 loading end fault
  echo "figure: SEED=$seed"
  RANDOM=$seed
  ensure_rolling
  : > "$work/outages"
  inside roll loader rm -f /tmp/stop
  inside roll loader byrnie-test-app load server:80 --rate 40 --seconds 300 --until /tmp/stop > "$work/chaos.out" 2>&1 &
  loading=$!
  end=$((SECONDS + CHAOS_SECONDS))
  while ((SECONDS < end)); do
    fault=$((RANDOM % 6))
    case $fault in
      0) roll_servers ;;
      1) lose_replica control-plane ;;
      2) lose_replica injector ;;
      3) kill_server_proxy ;;
      4) freeze_replica control-plane ;;
      5) scale_servers $((RANDOM % 3 + 2)) ;;
    esac
    sleep $((RANDOM % 3))
  done
  scale_servers 3
  ready roll deploy/server
  ready byrnie-system deploy/byrnie-control-plane deploy/byrnie-injector
  sleep 2
  inside roll loader touch /tmp/stop
  wait $loading || code=$?
  tail -n 20 "$work/chaos.out"
  echo "figure: $(grep -m 1 ' good, ' "$work/chaos.out"), $(wc -l < "$work/outages") proxies killed"
  account_for_failures
  expect "$BYRNIE" check
}

roll_servers() { kubectl -n roll rollout restart deploy/server; }
scale_servers() { kubectl -n roll scale deploy/server --replicas="$1"; }

# lose_replica COMPONENT: one of its pods, at once and without a farewell.
lose_replica() {
  kubectl -n byrnie-system delete "$(replica "$1")" --wait=false --grace-period=0 --force
}

# freeze_replica COMPONENT: one of its processes does not run for some seconds, as behind a partition; it keeps its sockets.
freeze_replica() {
  local pid
  pid=$(processes_of byrnie-system "$(replica "$1" | cut -d / -f 2)" "byrnie-$1")
  [[ -n $pid ]] || return 0
  kill -STOP "$pid"
  sleep 3
  kill -CONT "$pid" || true
}

replica() {
  kubectl -n byrnie-system get pods -l "app.kubernetes.io/component=$1" --field-selector=status.phase=Running -o name | shuf -n 1 --random-source=<(yes "$RANDOM")
}

# What ran through that proxy is cut, and until it is back its pod refuses. Written down with its time, in ms.
kill_server_proxy() {
  local pod pid begun restarts
  pod=$(pod_of roll server)
  pid=$(processes_of roll "$pod" byrnie-proxy)
  [[ -n $pid ]] || return 0
  restarts=$(proxy_restarts roll "$pod")
  begun=$(now)
  kill -9 "$pid"
  # A pod that is rolled away meanwhile does not come back, and need not.
  until (($(proxy_restarts roll "$pod") > restarts)); do sleep 0.2; done
  echo "$begun $(now)" >> "$work/outages"
}

proxy_restarts() {
  local count
  count=$(kubectl -n "$1" get pod "$2" -o 'jsonpath={.status.initContainerStatuses[?(@.name=="byrnie-proxy")].restartCount}' 2> /dev/null) || count=9999
  echo "${count:-9999}"
}

# A request that failed must have begun while a proxy was being killed, or in the second before.
account_for_failures() {
  local at unexplained=0
  while read -r at; do
    if ! awk -v at="$at" '$1 - 1000 <= at && at <= $2 { found = 1 } END { exit !found }' "$work/outages"; then
      echo "a request that began at $at failed, and no proxy was being killed then"
      unexplained=$((unexplained + 1))
    fi
  done < <(sed -n 's/^at \([0-9]*\) ms: .*/\1/p' "$work/chaos.out")
  ((!unexplained)) || fail "$unexplained requests failed without a reason; outages: $(tr '\n' ';' < "$work/outages")"
}
