# What the sentences are made of. Sourced by main.
# shellcheck shell=bash disable=SC2154

# All namespaces that the sentences make.
NAMESPACES=(shop work probes roll rules legacy ingress platform tangled leaving again)

fail() {
  echo "$*"
  exit 1
}

# expect COMMAND…: it must succeed; what it says is printed.
expect() {
  "$@" || fail "expected to succeed (exit code $?): $*"
}

# refuse COMMAND…: it must fail.
refuse() {
  ! "$@" || fail "expected to fail: $*"
}

# eventually SECONDS COMMAND…: five times the seconds that were promised.
eventually() {
  local patience=$(($1 * 5)) begun=$SECONDS
  shift
  until "$@"; do
    ((SECONDS - begun < patience)) || fail "not within $patience s: $*"
    sleep 0.2
  done
}

# holds TEXT PATTERN
holds() {
  [[ $1 == *$2* ]] || fail "expected $2, found: $1"
}

# namespace NAME [LABEL=VALUE…]
namespace() {
  kubectl create namespace "$1" --dry-run=client -o yaml | kubectl apply -f - > /dev/null
  (($# == 1)) || kubectl label --overwrite namespace "$@" > /dev/null
}

# enrolled NAME: a namespace in the mesh, as soon as its trust bundle is there.
enrolled() {
  namespace "$1" byrnie.dev/mesh=enabled
  eventually 5 kubectl -n "$1" get configmap byrnie-trust-bundle > /dev/null
}

# app NAME [ARGUMENT…]: objects of a ServiceAccount, a Service (port 80, and 9000 for the TCP echo) and a Deployment.
app() {
  local name=$1
  shift
  local arguments=("${@:---http=8080}")
  cat << END
apiVersion: v1
kind: ServiceAccount
metadata: { name: $name }
---
apiVersion: v1
kind: Service
metadata: { name: $name }
spec:
  selector: { app: $name }
  ports: [{ name: http, port: 80, targetPort: 8080 }, { name: tcp, port: 9000, targetPort: 9000 }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: $name }
spec:
  replicas: ${replicas-1}
  selector: { matchLabels: { app: $name } }
  template:
    metadata: { labels: { app: $name } }
    spec:
      serviceAccountName: $name
      containers:
        - name: app
          image: $IMAGE
          command: [byrnie-test-app, serve, --name=$name, --tcp=9000]
          args: [$(printf '"%s",' "${arguments[@]}")]
          readinessProbe: { httpGet: { port: 8080, path: /healthz }, periodSeconds: 1 }
END
}

# client NAME: a pod (with a ServiceAccount of that name) in which commands are run.
client() {
  cat << END
apiVersion: v1
kind: ServiceAccount
metadata: { name: $1 }
---
apiVersion: v1
kind: Pod
metadata: { name: $1, labels: { app: $1 }, annotations: { ${2-} } }
spec:
  serviceAccountName: $1
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: $IMAGE, command: [sleep, infinity] }]
END
}

apply() { kubectl -n "$1" apply -f - > /dev/null; }

# ready NAMESPACE KIND/NAME…
ready() {
  local namespace=$1 each
  shift
  for each; do
    case $each in
      pod/*) kubectl -n "$namespace" wait --for=condition=Ready "$each" --timeout=90s ;;
      *) kubectl -n "$namespace" rollout status "$each" --timeout=120s ;;
    esac || {
      kubectl -n "$namespace" describe pods | tail -n 30
      fail "$each in $namespace is not ready"
    }
  done
}

# inside NAMESPACE POD COMMAND…: in its container `app`.
inside() {
  local namespace=$1 pod=$2
  shift 2
  kubectl -n "$namespace" exec "$pod" -c app -- "$@"
}

# get NAMESPACE POD URL [OPTION…]
get() {
  local namespace=$1 pod=$2
  shift 2
  inside "$namespace" "$pod" curl -sS --fail --max-time 5 "$@"
}

# status NAMESPACE POD URL: the HTTP status of the answer.
status() { inside "$1" "$2" curl -sS -o /dev/null --max-time 10 -w '%{http_code}' "$3"; }

# turned_away NAMESPACE POD URL [OPTION…]: the request must fail as one that is not let through does: not connected, no
# answer in time, TLS refused, or cut. That the client, its program or the name is not there is no refusal.
turned_away() {
  local code=0
  get "$@" > "$work/turned-away" 2>&1 || code=$?
  case $code in
    7 | 28 | 35 | 52 | 55 | 56) ;;
    0) fail "expected to be turned away: ${*:3}; found an answer: $(tail -n 2 "$work/turned-away")" ;;
    *) fail "expected to be turned away (7, 28, 35, 52, 55 or 56 of curl), found $code: $(tail -n 2 "$work/turned-away")" ;;
  esac
}

# is_turned_away NAMESPACE POD URL: for `eventually`.
is_turned_away() { (turned_away "$@") > /dev/null; }

# pod_of NAMESPACE APP: one that runs, and is not about to end.
pod_of() {
  kubectl -n "$1" get pods -l "app=$2" -o json |
    jq -er '[.items[] | select(.status.phase == "Running" and .metadata.deletionTimestamp == null)][0].metadata.name'
}
ip_of() { kubectl -n "$1" get pod "$2" -o 'jsonpath={.status.podIP}'; }

# is_meshed NAMESPACE POD: its proxy runs, and is the first that runs.
is_meshed() {
  local names
  names=$(kubectl -n "$1" get pod "$2" -o 'jsonpath={.spec.initContainers[*].name}')
  [[ $names == "byrnie-capture byrnie-proxy"* ]]
}

# restarts_of_proxy NAMESPACE POD
restarts_of_proxy() {
  kubectl -n "$1" get pod "$2" -o 'jsonpath={.status.initContainerStatuses[?(@.name=="byrnie-proxy")].restartCount}'
}

# processes_of NAMESPACE POD PROGRAM: by the pod's control group, on our own node.
processes_of() {
  local uid pid
  uid=$(kubectl -n "$1" get pod "$2" -o 'jsonpath={.metadata.uid}')
  for pid in $(pgrep -x "${3:0:15}"); do
    ! grep -q "$uid" "/proc/$pid/cgroup" || echo "$pid"
  done
}

# begin_load NAMESPACE POD HOST:PORT: a pod that asks all the time, until end_load.
begin_load() {
  kubectl -n "$1" delete pod "$2" --ignore-not-found
  cat << END | apply "$1"
apiVersion: v1
kind: Pod
metadata: { name: $2 }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: $IMAGE
      command: [byrnie-test-app, load, "$3", --rate=20, --seconds=3600, --until=/tmp/stop]
END
  ready "$1" "pod/$2"
}

# end_load NAMESPACE POD: what it says at its end is in $work/POD.out.
end_load() {
  inside "$1" "$2" touch /tmp/stop
  eventually 5 has_ended "$1" "$2"
  kubectl -n "$1" logs "$2" -c app > "$work/$2.out"
  tail -n 20 "$work/$2.out"
  echo "figure: $2: $(grep ' good, ' "$work/$2.out")"
  kubectl -n "$1" delete pod "$2" --wait=false
}

has_ended() { kubectl -n "$1" get pod "$2" -o 'jsonpath={.status.containerStatuses[?(@.name=="app")].state}' | grep terminated > /dev/null; }

# lost_nothing POD: of what its load said.
lost_nothing() { grep '^[1-9][0-9]* good, 0 failed$' "$work/$1.out" || fail "requests of $1 were lost"; }

# edge NAMESPACE CLIENT SERVER: whether the control plane has heard of a proven edge between these ServiceAccounts.
edge() {
  "$BYRNIE" edges -n "$1" -o json | jq -e --arg account "spiffe://cluster.local/ns/$1/sa/" --arg client "$2" --arg server "$3"     'any(.[]; .secured and .source_id == $account + $client and .destination_id == $account + $server)' > /dev/null
}

# Milliseconds.
now() { date +%s%3N; }
