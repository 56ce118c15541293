# An empty cluster, Byrnie, and the shop. Sourced by main.
# shellcheck shell=bash

sentences_install() {
  sentence always check_is_red "before the installation, check is red and names the next command"
  sentence always install_may_be_stopped "an installation that is killed half-way leaves check red"
  sentence always install_turns_check_green "install brings everything up from there, and check is green"
  sentence always namespace_add_enrols "namespace add enrols a namespace"
  sentence always the_shop_is_meshed "a Deployment in it comes up meshed, and its first request is answered"
}

check_is_red() {
  local said
  refuse "$BYRNIE" check
  said=$("$BYRNIE" check 2>&1 || true)
  holds "$said" "byrnie install"
}

install_may_be_stopped() {
  local installing
  "$BYRNIE" install --image-prefix "$PREFIX" > "$work/half.out" 2>&1 &
  installing=$!
  eventually 6 kubectl get namespace byrnie-system
  kill -9 $installing || fail "it has ended by itself: $(cat "$work/half.out")"
  wait $installing || true
  refuse "$BYRNIE" check
}

install_turns_check_green() {
  local begun
  begun=$(now)
  expect "$BYRNIE" install --image-prefix "$PREFIX"
  echo "figure: install took $(($(now) - begun)) ms until everything was ready"
  expect "$BYRNIE" check
}

namespace_add_enrols() {
  namespace shop
  expect "$BYRNIE" namespace add shop
  eventually 5 kubectl -n shop get configmap byrnie-trust-bundle
  holds "$("$BYRNIE" namespace list)" shop
}

the_shop_is_meshed() {
  { app web && echo --- && app orders && echo --- && client teller; } | apply shop
  namespace legacy
  client stranger | apply legacy
  ready shop deploy/web deploy/orders pod/teller
  ready legacy pod/stranger
  is_meshed shop "$(pod_of shop web)" || fail "web has no proxy"
  holds "$(get shop teller http://orders/)" orders
  proxy_ready_times
}

# From the pod's start to its proxy being ready, as kubelet saw it, in whole seconds; then by the proxy's own log.
proxy_ready_times() {
  local begun connected
  read -r begun connected < <(kubectl -n shop logs teller -c byrnie-proxy --timestamps |
    awk 'NR == 1 { begun = $1 } / connected / { print begun, $1; exit }')
  [[ -n $connected ]] || fail "the proxy's log does not say that it is connected"
  echo "figure: teller: $(($(date -d "$connected" +%s%3N) - $(date -d "$begun" +%s%3N))) ms from the proxy's first line until it was connected"
  kubectl -n shop get pods -o json | jq -r '.items[] | .status as $status
    | ($status.initContainerStatuses[] | select(.name == "byrnie-proxy") | .state.running.startedAt | fromdate) as $proxy
    | ($status.conditions[] | select(.type == "Initialized") | .lastTransitionTime | fromdate) as $initialized
    | "figure: \(.metadata.name): \($proxy - ($status.startTime | fromdate)) s to the proxy'"'"'s start, \($initialized - $proxy) s until it was ready"'
}
