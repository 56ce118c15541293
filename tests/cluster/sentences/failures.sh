# Parts that fail. Sourced by main.
# shellcheck shell=bash

sentences_failures() {
  sentence a_killed_proxy_comes_back "a proxy that is killed comes back, and nothing passes in plaintext meanwhile"
  sentence without_the_injector_the_rest_goes_on "without an injector only new pods of enrolled namespaces wait"
  sentence without_the_control_plane_connections_go_on "without a control plane meshed pods go on talking"
  sentence a_damaged_certificate_is_replaced "damage to the webhooks' certificate is mended in seconds, and no pod is refused meanwhile"
  sentence what_can_not_work_is_refused "pods that can not work in the mesh are refused with the reason"
}

a_killed_proxy_comes_back() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be killed from here" && exit 77; }
  local pod pid begun asking
  pod=$(pod_of shop web)
  pid=$(processes_of shop "$pod" byrnie-proxy)
  inside legacy stranger byrnie-test-app load "$(ip_of shop "$pod"):8080" --rate 50 --seconds 8 > "$work/stranger.out" &
  asking=$!
  sleep 1
  begun=$(now)
  expect kill -9 "$pid"
  turned_away legacy stranger "http://$(ip_of shop "$pod"):8080/"
  # Its Service leaves the pod out for as long as the kubelet's probes say, so it is asked by its address. Promised are 2 s.
  expect inside shop teller timeout 10 sh -c "until curl -sf --max-time 1 http://$(ip_of shop "$pod"):8080/; do sleep 0.05; done"
  echo "figure: $(($(now) - begun)) ms from the proxy's end until its pod answered again"
  ! wait $asking || fail "somebody outside of the mesh was answered"
  grep '^0 good, [1-9][0-9]* failed$' "$work/stranger.out" || fail "$(tail -n 3 "$work/stranger.out")"
  eventually 5 proxy_restarted "$pod"
  ready shop deploy/web
  eventually 4 get shop teller http://web/
  turned_away legacy stranger http://web.shop/
}

proxy_restarted() { (($(restarts_of_proxy shop "$1") >= 1)); }

without_the_injector_the_rest_goes_on() {
  kubectl -n byrnie-system scale deploy/byrnie-injector --replicas=0
  kubectl -n byrnie-system wait --for=delete pod -l app.kubernetes.io/component=injector --timeout=60s || true
  local said
  said=$(! kubectl -n shop run waits --image="$IMAGE" --restart=Never --command -- true 2>&1) || fail "it was taken: $said"
  holds "$said" byrnie
  kubectl -n legacy run goes-on --image="$IMAGE" --restart=Never --command -- true
  # A rollout stands still, the pods of before go on, and the Deployment says why.
  kubectl -n shop rollout restart deploy/web
  eventually 5 its_reason_holds shop web byrnie-injector
  get shop teller http://web/
  refuse "$BYRNIE" check
  kubectl -n byrnie-system scale deploy/byrnie-injector --replicas=2
  ready byrnie-system deploy/byrnie-injector
  ready shop deploy/web
  eventually 4 kubectl -n shop run waits --image="$IMAGE" --restart=Never --command -- true
  kubectl -n shop delete pod waits --wait=false
}

its_reason_holds() {
  [[ $(kubectl -n "$1" get deploy "$2" -o 'jsonpath={.status.conditions[?(@.type=="ReplicaFailure")].message}') == *"$3"* ]]
}

without_the_control_plane_connections_go_on() {
  kubectl -n byrnie-system scale deploy/byrnie-control-plane --replicas=0
  kubectl -n byrnie-system wait --for=delete pod -l app.kubernetes.io/component=control-plane --timeout=60s || true
  for _ in 1 2 3; do
    expect get shop teller http://web/
    sleep 1
  done
  turned_away legacy stranger http://web.shop/
  kubectl -n byrnie-system scale deploy/byrnie-control-plane --replicas=2
  ready byrnie-system deploy/byrnie-control-plane
  eventually 5 "$BYRNIE" check
}

# By the kubelet's own time: the injector serves its last good certificate until the new one has come to it.
a_damaged_certificate_is_replaced() {
  local before begun
  eventually 5 "$BYRNIE" check
  before=$(served_certificate)
  kubectl -n byrnie-system patch secret byrnie-injector-tls -p '{"data": {"tls.crt": "AAAA", "tls.key": "AAAA"}}'
  begun=$(now)
  until certificate_is_new "$before"; do
    (($(now) - begun < 50000)) || fail "it was not replaced"
    expect kubectl -n shop run asked --image="$IMAGE" --dry-run=server
  done
  echo "figure: the damaged certificate was replaced after $(($(now) - begun)) ms"
  for _ in 1 2 3 4 5; do expect kubectl -n shop run asked --image="$IMAGE" --dry-run=server; done
  expect "$BYRNIE" check
}

served_certificate() { kubectl -n byrnie-system get secret byrnie-injector-tls -o 'jsonpath={.data.tls\.crt}'; }

certificate_is_new() {
  local found
  found=$(served_certificate)
  [[ $found != AAAA && $found != "$1" ]]
}

what_can_not_work_is_refused() {
  local said
  said=$(! bad_pod '{"spec": {"securityContext": {"runAsUser": 1500}}}' 2>&1) || fail "taken: $said"
  holds "$said" runAsUser
  said=$(! bad_pod '{"metadata": {"annotations": {"byrnie.dev/exclude-inbound-ports": "80;reboot"}}}' 2>&1) || fail "taken: $said"
  holds "$said" exclude-inbound-ports
}

bad_pod() { kubectl -n shop run bad --image="$IMAGE" --restart=Never --overrides="$1" --command -- true; }
