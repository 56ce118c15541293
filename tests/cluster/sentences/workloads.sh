# Every kind of workload, and every way to call one. Sourced by main.
# shellcheck shell=bash

sentences_workloads() {
  sentence workloads_come_up "StatefulSet, DaemonSet, Deployment and the pods of Jobs come up in the mesh"
  sentence stateful_sets_are_called_by_name "a pod of a StatefulSet is called by its own name"
  sentence daemon_sets_are_called "a DaemonSet is called through its Service"
  sentence jobs_complete "a Job completes, and a CronJob's, though they have a proxy"
  sentence init_containers_have_the_network "an init container uses the network of the mesh"
  sentence an_api_token_is_not_needed "a pod that mounts no API token is in the mesh, and its container sees nothing of the proxy's"
  sentence several_containers_and_services "a pod of several containers, named ports and Services is called at all of them"
  sentence pods_are_called_by_address "a pod is called by its address, and by itself"
  sentence external_names_lead_there "an ExternalName leads to the Service that it names"
  sentence services_without_selectors_lead_there "a Service without a selector leads to the endpoints that it is given"
  sentence node_ports_reach_the_mesh "a NodePort is called from inside of the mesh, and refused from outside of it"
  sentence external_addresses_reach_the_mesh "a Service is called at its external IP and its load balancer's, and refuses strangers there"
  sentence host_network_pods_pass_by "a pod on its node's network runs without a proxy, and is not trusted"
  sentence idle_and_half_closed_connections_live_on "connections that idle, and that are half closed, live on"
}

ensure_work() {
  ! kubectl -n work get pod with-init &> /dev/null || return 0
  enrolled work
  {
    client caller && echo --- && app plain
    stateful_set && daemon_set && jobs && many && with_init
  } | apply work
  ready work pod/caller deploy/plain sts/db ds/agent deploy/many pod/with-init
}

workloads_come_up() {
  ensure_work
  for each in db-0 caller with-init; do is_meshed work $each || fail "$each has no proxy"; done
}

stateful_set() {
  cat << END
---
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, selector: { app: db }, publishNotReadyAddresses: true, ports: [{ name: http, port: 8080 }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      containers:
        - name: app
          image: $IMAGE
          command: [sh, -c, 'exec byrnie-test-app serve --http=8080 --name=\$(hostname)']
          readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
END
}

daemon_set() {
  cat << END
---
apiVersion: v1
kind: Service
metadata: { name: agent }
spec: { selector: { app: agent }, internalTrafficPolicy: Local, ports: [{ port: 80, targetPort: http }] }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: agent }
spec:
  selector: { matchLabels: { app: agent } }
  template:
    metadata: { labels: { app: agent } }
    spec:
      containers:
        - name: app
          image: $IMAGE
          command: [byrnie-test-app, serve, --http=8080, --name=agent]
          ports: [{ name: http, containerPort: 8080 }]
END
}

jobs() {
  cat << END
---
apiVersion: batch/v1
kind: Job
metadata: { name: once }
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: app, image: $IMAGE, command: [curl, -sS, --fail, --retry, "30", --retry-all-errors, --retry-delay, "1", http://plain/] }]
---
apiVersion: batch/v1
kind: CronJob
metadata: { name: often }
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{ name: app, image: $IMAGE, command: [curl, -sS, --fail, http://plain/] }]
END
}

many() {
  cat << END
---
apiVersion: v1
kind: Service
metadata: { name: first }
spec: { selector: { app: many }, ports: [{ name: one, port: 80, targetPort: one }, { name: two, port: 81, targetPort: two }] }
---
apiVersion: v1
kind: Service
metadata: { name: second }
spec: { selector: { app: many }, ports: [{ port: 8080, targetPort: 8082, appProtocol: http }] }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: many }
spec:
  selector: { matchLabels: { app: many } }
  template:
    metadata: { labels: { app: many } }
    spec:
      containers:
        - { name: app, image: $IMAGE, command: [byrnie-test-app, serve, --http=8081, --name=one], ports: [{ name: one, containerPort: 8081 }] }
        - { name: other, image: $IMAGE, command: [byrnie-test-app, serve, --http=8082, --name=two], ports: [{ name: two, containerPort: 8082 }] }
END
}

with_init() {
  cat << END
---
apiVersion: v1
kind: Pod
metadata: { name: with-init }
spec:
  initContainers: [{ name: migrate, image: $IMAGE, command: [curl, -sS, --fail, --retry, "30", --retry-all-errors, --retry-delay, "1", http://plain/] }]
  containers: [{ name: app, image: $IMAGE, command: [sleep, infinity] }]
END
}

stateful_sets_are_called_by_name() {
  ensure_work
  for each in db-0 db-1; do holds "$(get work caller "http://$each.db:8080/")" $each; done
  get work caller http://db:8080/
}

daemon_sets_are_called() {
  ensure_work
  holds "$(get work caller http://agent/)" agent
}

jobs_complete() {
  ensure_work
  kubectl -n work create job --from=cronjob/often from-cron
  for each in once from-cron; do
    kubectl -n work wait --for=condition=Complete "job/$each" --timeout=60s || {
      kubectl -n work describe job "$each" && kubectl -n work get pods -o wide
      fail "$each did not complete"
    }
  done
}

init_containers_have_the_network() {
  ensure_work
  holds "$(kubectl -n work logs with-init -c migrate)" plain
  eventually 6 edge work default plain
}

an_api_token_is_not_needed() {
  ensure_work
  client tokenless | sed 's/^spec:/&\n  automountServiceAccountToken: false/' | apply work
  ready work pod/tokenless
  is_meshed work tokenless || fail "it has no proxy"
  holds "$(get work tokenless http://plain/)" plain
  holds "$(inside work tokenless sh -c 'ls /var/run/secrets /var/run/byrnie 2> /dev/null; echo none')" none
  refuse inside work tokenless ls -d /var/run/secrets/kubernetes.io /var/run/secrets/byrnie /var/run/byrnie
}

several_containers_and_services() {
  ensure_work
  holds "$(get work caller http://first/)" one
  holds "$(get work caller http://first:81/)" two
  holds "$(get work caller http://second:8080/)" two
}

pods_are_called_by_address() {
  ensure_work
  local ip
  ip=$(ip_of work "$(pod_of work many)")
  holds "$(get work caller "http://$ip:8082/")" two
  holds "$(get work "$(pod_of work many)" http://first/)" one
}

external_names_lead_there() {
  ensure_work
  kubectl -n work create service externalname elsewhere --external-name orders.shop.svc.cluster.local --dry-run=client -o yaml |
    apply work
  holds "$(get work caller http://elsewhere/)" orders
}

services_without_selectors_lead_there() {
  ensure_work
  cat << END | apply work
apiVersion: v1
kind: Service
metadata: { name: by-hand }
spec: { ports: [{ name: http, port: 80, targetPort: 8080 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: by-hand, labels: { kubernetes.io/service-name: by-hand } }
addressType: IPv4
ports: [{ name: http, port: 8080 }]
endpoints: [{ addresses: ["$(ip_of work "$(pod_of work plain)")"], conditions: { ready: true } }]
END
  eventually 1 get work caller http://by-hand/
  # It is a meshed pod all the same: a stranger has no more luck by this way.
  turned_away legacy stranger http://by-hand.work/
}

node_ports_reach_the_mesh() {
  ensure_work
  kubectl -n work patch service plain -p '{"spec": {"type": "NodePort"}}'
  local port node
  port=$(kubectl -n work get service plain -o 'jsonpath={.spec.ports[0].nodePort}')
  node=$(kubectl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
  eventually 2 get work caller "http://$node:$port/"
  turned_away legacy stranger "http://$node:$port/"
}

# Of the documentation's range: nothing answers there but Kubernetes itself.
external_addresses_reach_the_mesh() {
  ensure_work
  local each
  cat << END | apply work
apiVersion: v1
kind: Service
metadata: { name: outward }
spec: { type: LoadBalancer, selector: { app: plain }, externalIPs: [203.0.113.80], ports: [{ port: 80, targetPort: 8080 }] }
END
  kubectl -n work patch service outward --subresource=status -p '{"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.81"}]}}}'
  for each in 203.0.113.80 203.0.113.81; do
    eventually 2 get work caller "http://$each/"
    turned_away legacy stranger "http://$each/"
  done
  eventually 6 edge work caller plain
  kubectl -n work delete service outward
}

host_network_pods_pass_by() {
  ensure_work
  local said
  said=$(kubectl -n work apply -f - 2>&1 << END
apiVersion: v1
kind: Pod
metadata: { name: on-node }
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{ name: app, image: $IMAGE, command: [byrnie-test-app, serve, --http=19090, --name=on-node] }]
END
  )
  holds "$said" hostNetwork
  ready work pod/on-node
  ! is_meshed work on-node || fail "it has a proxy"
  turned_away work on-node http://plain.work/
}

idle_and_half_closed_connections_live_on() {
  ensure_work
  holds "$(inside work caller sh -c 'printf "to the end\n" | timeout 10 nc plain 9000')" "to the end"
  holds "$(inside work caller sh -c '(sleep 3; echo late) | timeout 10 nc plain 9000')" late
}
