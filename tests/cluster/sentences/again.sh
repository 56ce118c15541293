# Other ways to install, on the cluster from which everything was removed. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_again() {
  sentence another_trust_domain "install --trust-domain gives every identity that trust domain"
  sentence the_chart_brings_the_mesh "the Helm chart brings the mesh up, upgrades it, and leaves what its page says"
}

another_trust_domain() {
  local said
  is_removed
  expect "$BYRNIE" install --image-prefix "$PREFIX" --trust-domain mesh.example
  works_again
  "$BYRNIE" identity list -n again -o json | jq -e 'length > 1 and all(.[]; .spiffe_id | startswith("spiffe://mesh.example/ns/again/sa/"))' ||
    fail "$("$BYRNIE" identity list -n again -o wide)"
  # It can't be changed, and neither command does so unasked.
  said=$(! kubectl patch meshconfig default --type=merge -p '{"spec": {"trustDomain": "other.example"}}' 2>&1) || fail "it was changed"
  holds "$said" trustDomain
  refuse "$BYRNIE" install --trust-domain other.example
  expect "$BYRNIE" upgrade
  holds "$(kubectl get meshconfig default -o 'jsonpath={.spec.trustDomain}')" mesh.example
  leave_again
  expect "$BYRNIE" uninstall --crds
  eventually 6 nothing_is_left
}

the_chart_brings_the_mesh() {
  command -v helm > /dev/null || { echo "there is no helm; tests/kubernetes/build helm makes one" && exit 77; }
  local chart=$here/../../../charts/byrnie
  is_removed
  expect helm install byrnie "$chart" -n byrnie-system --create-namespace --set image.prefix="$PREFIX" --wait --timeout 2m
  eventually 3 "$BYRNIE" check
  works_again
  expect helm upgrade byrnie "$chart" -n byrnie-system --reuse-values --set injector.replicas=3 --wait --timeout 2m
  [[ $(kubectl -n byrnie-system get deploy byrnie-injector -o 'jsonpath={.status.readyReplicas}') == 3 ]] || fail "it was not upgraded"
  expect get again caller http://web/
  # What another program manages, `byrnie install` leaves alone.
  refuse "$BYRNIE" install --image-prefix "$PREFIX"
  leave_again
  expect helm uninstall byrnie -n byrnie-system --wait
  [[ $(kubectl -n byrnie-system get -o name secrets | sort | paste -sd ' ') == "secret/byrnie-ca secret/byrnie-injector-tls" ]] ||
    fail "expected the Secrets that the page names, found: $(kubectl -n byrnie-system get -o name secrets)"
  [[ -n $(kubectl -n byrnie-system get -o name leases) ]] || fail "the Lease that the page names is not there"
  kubectl delete namespace byrnie-system --timeout=60s
  eventually 6 nothing_is_left
}

# Where this sentence was chosen alone, the shop is still there.
is_removed() {
  [[ -z $(kubectl get namespace byrnie-system --ignore-not-found -o name) ]] || {
    namespace_remove_unmeshes
    uninstall_leaves_nothing
  }
}

works_again() {
  enrolled again
  { app web && echo --- && client caller; } | apply again
  ready again deploy/web pod/caller
  holds "$(get again caller http://web/)" web
  is_meshed again "$(pod_of again web)" || fail "web has no proxy"
  turned_away legacy stranger http://web.again/
}

leave_again() {
  "$BYRNIE" namespace remove again
  kubectl delete namespace again --timeout=90s
}
