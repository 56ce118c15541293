# Who has an identity, and which connections are proven. Sourced by main.
# shellcheck shell=bash

sentences_proof() {
  sentence identities_are_listed "identity list shows every meshed pod, and identity show the certificate of deploy/web"
  sentence edges_are_proven "edges --require-mtls proves the edge, and fails when there is one without"
  sentence a_stranger_is_refused "a client outside of the mesh is refused, by Service and by pod address"
  sentence an_opted_out_pod_is_refused "a pod of the namespace that opted out is refused, too"
  sentence the_wire_has_no_plaintext "between the pods there is TLS and nothing else"
  sentence idle_memory_is_small "an idle proxy is small"
}

identities_are_listed() {
  local listed shown
  listed=$("$BYRNIE" identity list -n shop -o json)
  for each in web orders teller; do holds "$listed" "spiffe://cluster.local/ns/shop/sa/$each"; done
  shown=$("$BYRNIE" identity show deploy/web -n shop)
  holds "$shown" spiffe://cluster.local/ns/shop/sa/web
  "$BYRNIE" identity show deploy/web -n shop -o pem > "$work/web.pem"
  holds "$(openssl x509 -in "$work/web.pem" -noout -ext subjectAltName)" "URI:spiffe://cluster.local/ns/shop/sa/web"
}

edges_are_proven() {
  get shop teller http://web/
  eventually 6 edge_is_there
  expect "$BYRNIE" edges -n shop --require-mtls
  kubectl -n shop apply -f - << 'END'
apiVersion: byrnie.dev/v1alpha1
kind: MtlsPolicy
metadata: { name: open-for-a-while }
spec: { selector: { matchLabels: { app: orders } }, mode: Permissive }
END
  eventually 1 get legacy stranger http://orders.shop/
  eventually 6 plaintext_edge_is_seen
  kubectl -n shop delete mtlspolicy open-for-a-while
  kubectl -n shop rollout restart deploy/orders
  ready shop deploy/orders
}

edge_is_there() { edge shop teller web; }
plaintext_edge_is_seen() {
  "$BYRNIE" edges -n shop -o json | jq -e 'any(.[]; .secured | not)' > /dev/null && ! "$BYRNIE" edges -n shop --require-mtls &> /dev/null
}

a_stranger_is_refused() {
  local ip
  ip=$(ip_of shop "$(pod_of shop web)")
  for url in http://web.shop/ "http://$ip:8080/" "http://$ip:15003/"; do
    turned_away legacy stranger "$url"
  done
  # Its own connections are none of the mesh's business.
  expect inside legacy stranger curl -sk --max-time 5 https://kubernetes.default.svc/version
}

an_opted_out_pod_is_refused() {
  client outcast 'byrnie.dev/inject: "false"' | apply shop
  ready shop pod/outcast
  ! is_meshed shop outcast || fail "it has a proxy"
  turned_away shop outcast http://web/
  kubectl -n shop delete pod outcast --wait=false
}

the_wire_has_no_plaintext() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "the bridge of the pods can't be read from here" && exit 77; }
  command -v tcpdump > /dev/null || { echo "tcpdump is not installed" && exit 77; }
  local dumping each
  timeout 20 tcpdump -i cni0 -U -w "$work/wire.pcap" 'tcp port 8080' &
  dumping=$!
  sleep 1
  for _ in 1 2 3; do expect get shop teller http://orders/; done
  sleep 1
  kill $dumping && wait $dumping || true
  (($(stat -c %s "$work/wire.pcap") > 1000)) || fail "nothing was seen"
  for each in 'GET / HTTP' 'HTTP/1.1 200' 'Host: orders' 'host: orders'; do
    ! grep -aqF "$each" "$work/wire.pcap" || fail "a part of a request or its answer went over the wire as it was: $each"
  done
}

idle_memory_is_small() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "processes of the node can't be seen from here" && exit 77; }
  local pod kib
  for pod in teller "$(pod_of shop web)"; do
    kib=$(resident shop "$pod" byrnie-proxy)
    echo "figure: the idle proxy of $pod: $kib KiB resident"
    ((kib > 0 && kib < 64 * 1024)) || fail "$pod: $kib KiB"
  done
  pod=$(kubectl -n byrnie-system get pods -l app.kubernetes.io/component=control-plane -o 'jsonpath={.items[0].metadata.name}')
  echo "figure: $pod: $(resident byrnie-system "$pod" byrnie-control-plane) KiB resident"
}

# resident NAMESPACE POD PROGRAM: the resident memory of that program in that pod, in KiB; 0: it does not run.
resident() {
  local pid kib=0
  for pid in $(processes_of "$@"); do kib=$(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"); done
  echo "$kib"
}
