# The end. Sourced by main.
# shellcheck shell=bash

sentences_remove() {
  sentence uninstall_refuses_while_in_use "uninstall refuses while the mesh is in use"
  sentence a_namespace_is_deleted "an enrolled namespace is deleted with all that runs in it"
  sentence namespace_remove_unmeshes "namespace remove takes a namespace out, and its pods are called as before"
  sentence uninstall_leaves_nothing "uninstall leaves nothing"
}

uninstall_refuses_while_in_use() {
  refuse "$BYRNIE" uninstall --crds
  kubectl -n byrnie-system get deploy byrnie-control-plane
}

a_namespace_is_deleted() {
  enrolled leaving
  { app web && echo --- && client caller; } | apply leaving
  ready leaving deploy/web pod/caller
  expect kubectl delete namespace leaving --timeout=90s
  # Nobody writes into it again, and no other namespace has lost anything.
  expect "$BYRNIE" check
  expect get shop teller http://web/
}

namespace_remove_unmeshes() {
  expect "$BYRNIE" namespace remove shop --restart
  kubectl -n shop delete pod teller
  client teller | apply shop
  ready shop deploy/web deploy/orders pod/teller
  eventually 10 no_proxy_in shop
  get legacy stranger http://web.shop/
  eventually 5 no_trust_bundle_in shop
}

no_proxy_in() {
  local found
  found=$(kubectl -n "$1" get pods -o 'jsonpath={.items[*].spec.initContainers[*].name}') && [[ $found != *byrnie-proxy* ]]
}

no_trust_bundle_in() {
  local found
  found=$(kubectl -n "$1" get configmap byrnie-trust-bundle --ignore-not-found -o name) && [[ -z $found ]]
}

uninstall_leaves_nothing() {
  local each
  for each in $(kubectl get namespaces -l byrnie.dev/mesh=enabled -o 'jsonpath={.items[*].metadata.name}'); do
    expect "$BYRNIE" namespace remove "$each"
  done
  # Their namespaces stay, to show what else is in them.
  for each in "${NAMESPACES[@]}"; do
    [[ $each == @(shop|legacy) ]] ||
      kubectl -n "$each" delete deployments,statefulsets,daemonsets,jobs,cronjobs,pods --all --grace-period=1 --timeout=120s
  done
  expect "$BYRNIE" uninstall --crds
  eventually 6 nothing_is_left
  get legacy stranger http://web.shop/
}

nothing_is_left() {
  local everywhere inside labelled namespaces found
  # That something can't be listed does not mean that it is not there.
  everywhere=$(kubectl get -o name \
    namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings) &&
    inside=$(kubectl get -A -o name configmaps,secrets,leases,roles,rolebindings,services,serviceaccounts,deployments) &&
    labelled=$(kubectl get -A -o name -l app.kubernetes.io/managed-by=byrnie configmaps,secrets) &&
    namespaces=$(kubectl get namespaces -o json) || return 1
  found=$(grep -i byrnie <<< "$everywhere"$'\n'"$inside")$labelled
  found+=$(jq -r '.items[].metadata | select((.labels // {}) | keys | any(startswith("byrnie.dev/"))) |
    "namespace \(.name) has a label of ours"' <<< "$namespaces") || return 1
  [[ -z $found ]] || { echo "$found" && return 1; }
}
