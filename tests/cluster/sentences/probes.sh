# The kubelet's probes, through the proxy, in strict mode. Sourced by main.
# shellcheck shell=bash

# KIND: the container's name. `reads` needs a header of the probe.
readonly PROBES=(http https tcp grpc exec reads)

sentences_probes() {
  sentence probes_pass "probes by HTTP, HTTPS, TCP, gRPC, exec, by named port and with headers pass while the application is healthy"
  sentence probes_fail "each of them fails when its application is not healthy, and passes again"
  sentence probes_keep_to_their_container "each container of a pod has its own probes, with their own patience"
  sentence liveness_restarts "a failed liveness probe restarts the application, and its proxy goes on"
  sentence hooks_run "postStart and preStop hooks by HTTP are performed"
}

ensure_probes() {
  enrolled probes
  probed | apply probes
  for each in "${PROBES[@]}"; do ready probes "deploy/$each"; done
}

probes_pass() {
  ensure_probes
  # All of that with a port that nobody outside of the mesh may call.
  turned_away legacy stranger "http://$(ip_of probes "$(pod_of probes http)"):8080/healthz"
}

probed() {
  probe http '--http=8080' '{ httpGet: { path: /healthz, port: web }, periodSeconds: 1, failureThreshold: 2 }'
  probe https '--https=8443' '{ httpGet: { path: /healthz, port: 8443, scheme: HTTPS }, periodSeconds: 1, failureThreshold: 2 }'
  probe tcp '--tcp=9000' '{ tcpSocket: { port: 9000 }, periodSeconds: 1, failureThreshold: 2 }'
  probe grpc '--grpc=5000' '{ grpc: { port: 5000, service: app }, periodSeconds: 1, failureThreshold: 2 }'
  probe exec '--http=8080' '{ exec: { command: [test, "!", -e, /tmp/unhealthy] }, periodSeconds: 1, failureThreshold: 2 }'
  probe reads '--http=8080", "--probe-header=yes' \
    '{ httpGet: { path: /healthz, port: 8080, httpHeaders: [{ name: X-Probe, value: "yes" }] }, periodSeconds: 1, failureThreshold: 2 }'
}

# probe NAME ARGUMENT PROBE
probe() {
  cat << END
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: $1 }
spec:
  selector: { matchLabels: { app: $1 } }
  template:
    metadata: { labels: { app: $1 } }
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: app
          image: $IMAGE
          command: [byrnie-test-app, serve, "$2"]
          ports: [{ name: web, containerPort: 8080 }]
          startupProbe: $3
          readinessProbe: $3
END
}

probes_fail() {
  local each
  ensure_probes
  for each in "${PROBES[@]}"; do inside probes "$(pod_of probes "$each")" touch /tmp/unhealthy; done
  for each in "${PROBES[@]}"; do eventually 5 is_not_ready "$each"; done
  for each in "${PROBES[@]}"; do inside probes "$(pod_of probes "$each")" rm /tmp/unhealthy; done
  for each in "${PROBES[@]}"; do ready probes "deploy/$each"; done
}

is_not_ready() {
  local ready
  ready=$(kubectl -n probes get deploy "$1" -o json) && [[ $(jq '.status.readyReplicas // 0' <<< "$ready") == 0 ]]
}

# `/slow` answers after 2 s.
probes_keep_to_their_container() {
  enrolled probes
  cat << END | apply probes
apiVersion: v1
kind: Pod
metadata: { name: pair }
spec:
  terminationGracePeriodSeconds: 2
  containers:
    - name: app
      image: $IMAGE
      command: [byrnie-test-app, serve, --http=8080]
      startupProbe: { httpGet: { path: /healthz, port: 8080 }, periodSeconds: 1 }
      readinessProbe: { httpGet: { path: /slow, port: 8080 }, periodSeconds: 1, timeoutSeconds: 4 }
    - name: hasty
      image: $IMAGE
      command: [byrnie-test-app, serve, --http=8081]
      startupProbe: { httpGet: { path: /healthz, port: 8081 }, periodSeconds: 1 }
      readinessProbe: { httpGet: { path: /slow, port: 8081 }, periodSeconds: 1, timeoutSeconds: 1 }
END
  eventually 10 pair_has_started
  eventually 4 hasty_is_unhealthy
  eventually 4 pair_differs
}

# of_pair FIELD CONTAINER
of_pair() { kubectl -n probes get pod pair -o "jsonpath={.status.containerStatuses[?(@.name==\"$2\")].$1}"; }
pair_has_started() { [[ $(of_pair started app)$(of_pair started hasty) == truetrue ]]; }
pair_differs() { [[ $(of_pair ready app)/$(of_pair ready hasty) == true/false ]]; }
hasty_is_unhealthy() {
  kubectl -n probes get events --field-selector reason=Unhealthy,involvedObject.name=pair -o json |
    jq -e 'any(.items[]; .involvedObject.fieldPath == "spec.containers{hasty}" and (.message | startswith("Readiness")))' > /dev/null
}

liveness_restarts() {
  enrolled probes
  cat << END | apply probes
apiVersion: v1
kind: Pod
metadata: { name: mortal }
spec:
  terminationGracePeriodSeconds: 2
  containers:
    - name: app
      image: $IMAGE
      # Its file of health goes with it.
      command: [sh, -c, 'rm -f /tmp/unhealthy; exec byrnie-test-app serve --http=8080']
      livenessProbe: { httpGet: { path: /healthz, port: 8080 }, periodSeconds: 1, failureThreshold: 2 }
END
  ready probes pod/mortal
  inside probes mortal touch /tmp/unhealthy
  eventually 10 was_restarted
  ready probes pod/mortal
  [[ $(kubectl -n probes get pod mortal -o 'jsonpath={.status.initContainerStatuses[?(@.name=="byrnie-proxy")].restartCount}') == 0 ]] ||
    fail "its proxy was restarted, too"
}

was_restarted() { [[ $(kubectl -n probes get pod mortal -o 'jsonpath={.status.containerStatuses[0].restartCount}') -ge 1 ]]; }

hooks_run() {
  enrolled probes
  cat << END | apply probes
apiVersion: v1
kind: Pod
metadata: { name: hooked }
spec:
  terminationGracePeriodSeconds: 10
  containers:
    - name: app
      image: $IMAGE
      command: [sh, -c, 'exec byrnie-test-app serve --http=8080']
      lifecycle:
        postStart: { httpGet: { path: /healthz, port: 8080 } }
        preStop: { httpGet: { path: /slow, port: 8080 } }
END
  ready probes pod/hooked
  local begun
  begun=$(now)
  kubectl -n probes delete pod hooked --timeout=60s
  (($(now) - begun >= 1900)) || fail "the preStop hook takes 2 s; the pod was gone after $(($(now) - begun)) ms"
}
