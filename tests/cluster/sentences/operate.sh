# What an operator does with a mesh that runs: look, enrol, upgrade. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_operate() {
  sentence enrolling_says_what_it_breaks "namespace add names what it would break and changes nothing, and what it prints mends it"
  sentence what_is_missing_is_named "check names objects that are missing, and the same installation again brings them back"
  sentence upgrade_is_careful "upgrade removes what a version no longer has, and takes over nothing of others and no newer version"
  sentence versions_that_differ_are_named "check names the pods of another version than the one that is installed"
}

# In it, everything that breaks at once: a webhook's backend, a policy that shuts the control plane out, a NodePort, a pod of
# the proxy's user.
tangle() {
  app hook
  cat << END
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: dns-only }
spec: { podSelector: {}, policyTypes: [Egress], egress: [{ ports: [{ port: 53, protocol: UDP }] }] }
---
apiVersion: v1
kind: Service
metadata: { name: outside }
spec: { type: NodePort, selector: { app: hook }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: intruder }
spec:
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: $IMAGE, command: [sleep, infinity], securityContext: { runAsUser: 1500 } }]
END
}

enrolling_says_what_it_breaks() {
  local said
  namespace tangled
  tangle | apply tangled
  kubectl apply -f - << 'END'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: { name: tangled.test.example }
webhooks:
  - name: tangled.test.example
    admissionReviewVersions: [v1]
    sideEffects: None
    failurePolicy: Ignore
    namespaceSelector: { matchLabels: { nobody: has-this } }
    rules: [{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps] }]
    clientConfig: { service: { namespace: tangled, name: hook, port: 80 } }
END
  ready tangled deploy/hook pod/intruder
  said=$(! "$BYRNIE" namespace add tangled 2>&1) || fail "it enrolled: $said"
  echo "$said"
  for each in "Service hook" "Service outside" "NetworkPolicy dns-only" "pod/intruder" "nothing was changed"; do
    holds "$said" "$each"
  done
  [[ $(mesh_label tangled) != enabled ]] || fail "it enrolled"
  # The commands are those lines that stand below what they mend, and the object up to its end mark.
  sed -n 's/^          //p' <<< "$said" | awk '/^kubectl / { on = 1 } on { print } /^EOF$/ || (/^kubectl / && !/<</) { on = 0 }' > "$work/mend"
  expect bash -e "$work/mend"
  kubectl -n tangled delete pod intruder
  ready tangled deploy/hook
  expect "$BYRNIE" namespace add tangled --restart
  [[ $(mesh_label tangled) == enabled ]] || fail "it is not enrolled"
  ready tangled deploy/hook
  eventually 6 its_pod_is_meshed
  # What was mended works: the excluded port is open to the API server and the nodes, without a proxy.
  eventually 2 get legacy stranger http://outside.tangled/
  kubectl delete validatingwebhookconfiguration tangled.test.example
  kubectl delete namespace tangled --wait=false
}

its_pod_is_meshed() { is_meshed tangled "$(pod_of tangled hook)"; }

mesh_label() { kubectl get namespace "$1" -o 'jsonpath={.metadata.labels.byrnie\.dev/mesh}'; }

what_is_missing_is_named() {
  local each found
  for each in ServiceAccount/byrnie-injector ClusterRole/byrnie-injector ClusterRoleBinding/byrnie-control-plane \
    Role/byrnie-control-plane RoleBinding/byrnie-control-plane Service/byrnie-control-plane Service/byrnie-injector \
    PodDisruptionBudget/byrnie-injector ValidatingAdmissionPolicy/byrnie-proxy ValidatingAdmissionPolicyBinding/byrnie-proxy \
    Deployment/byrnie-injector CustomResourceDefinition/mtlspolicies.byrnie.dev ValidatingWebhookConfiguration/byrnie-injector \
    MutatingWebhookConfiguration/byrnie-injector; do
    kubectl -n byrnie-system delete "$each"
    found=$(! "$BYRNIE" check -o json) || fail "check is green without $each"
    found=$(jq -r '.[] | select(.outcome == "failed") | .found' <<< "$found")
    grep -E "^${each%/*} (byrnie-system/)?${each#*/} is missing$" <<< "$found" || fail "expected $each to be named, found: $found"
  done
  expect "$BYRNIE" install --image-prefix "$PREFIX"
  eventually 10 "$BYRNIE" check
  expect get shop teller http://web/
}

upgrade_is_careful() {
  local said
  kubectl -n byrnie-system create serviceaccount of-an-earlier-version
  kubectl -n byrnie-system create serviceaccount of-somebody
  kubectl -n byrnie-system label serviceaccount of-an-earlier-version app.kubernetes.io/managed-by=byrnie app.kubernetes.io/part-of=byrnie
  holds "$(expect "$BYRNIE" upgrade 2>&1)" "of-an-earlier-version deleted"
  refuse kubectl -n byrnie-system get serviceaccount of-an-earlier-version
  kubectl -n byrnie-system delete serviceaccount of-somebody

  kubectl label --overwrite clusterrole byrnie-injector app.kubernetes.io/managed-by=somebody
  said=$(! "$BYRNIE" upgrade 2>&1) || fail "it took over what is somebody's: $said"
  holds "$said" "ClusterRole byrnie-injector is somebody else's"
  expect "$BYRNIE" upgrade --force

  kubectl -n byrnie-system label --overwrite deploy/byrnie-injector app.kubernetes.io/version=99.0.0
  said=$(! "$BYRNIE" upgrade 2>&1) || fail "it went back: $said"
  holds "$said" "a newer version is installed"
  holds "$said" 99.0.0
  expect "$BYRNIE" upgrade --force
  eventually 5 "$BYRNIE" check
}

# Whether it runs is nothing to the check: the image of that version is nowhere.
versions_that_differ_are_named() {
  kubectl -n byrnie-system get deploy byrnie-control-plane -o json |
    jq '.spec.template | {apiVersion: "v1", kind: "Pod", metadata: {name: "astray", labels: .metadata.labels}, spec}
      | .spec.containers[0] |= (.image = "byrnie/control-plane:0.0.1" | .imagePullPolicy = "Never")' |
    kubectl -n byrnie-system apply -f -
  local said
  said=$("$BYRNIE" check 2>&1)
  holds "$said" "pods of others: astray (0.0.1)"
  refuse "$BYRNIE" check --fail-on-warning
  kubectl -n byrnie-system delete pod astray --grace-period=0 --force
}
