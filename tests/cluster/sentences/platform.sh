# The way in and the way out: an ingress controller that is not in the mesh, and hosts beyond it. Sourced by main.
# shellcheck shell=bash

sentences_platform() {
  sentence ingress_with_its_certificate "nginx outside of the mesh calls a meshed pod by HTTPS, verified both ways with the Secret of MeshConfig"
  sentence a_wrong_name_is_refused "nginx refuses a pod under the name of another"
  sentence another_principal_is_refused "another principal's certificate is refused, and so is none at all"
  sentence egress_is_as_allowed "a pod reaches the address that EgressPolicy allows, and no other"
}

mesh_config() {
  kubectl apply -f - << END
apiVersion: byrnie.dev/v1alpha1
kind: MeshConfig
metadata: { name: default }
spec:
  ingressCertificates:
    - { namespace: ingress, serviceAccount: nginx }
    - { namespace: ingress, serviceAccount: other, secretName: other-client }
  networks: { podCIDRs: [${POD_CIDR:-10.78.0.0/16}], serviceCIDRs: [${SERVICE_CIDR:-10.96.0.0/16}] }
  ${1-}
END
}

ensure_platform() {
  ! kubectl -n platform get pod caller &> /dev/null || return 0
  namespace ingress
  enrolled platform
  "$BYRNIE" upgrade --image-prefix "$PREFIX" --ingress-secret other-client
  mesh_config
  { app shopfront && echo --- && client caller; } | apply platform
  kubectl -n platform apply -f - << 'END'
apiVersion: byrnie.dev/v1alpha1
kind: IngressPolicy
metadata: { name: from-nginx }
spec:
  selector: { matchLabels: { app: shopfront } }
  ports: [8080]
  principals: ["spiffe://cluster.local/ns/ingress/sa/nginx"]
END
  ready platform deploy/shopfront pod/caller
}

# nginx NAME SECRET [SERVER]: a reverse proxy as the certificate's principal, and by what name it expects the pod.
nginx() {
  local ip
  ip=$(ip_of platform "$(pod_of platform shopfront)")
  cat << END | apply ingress
apiVersion: v1
kind: ConfigMap
metadata: { name: $1 }
data:
  nginx.conf: |
    daemon off;
    user root;
    pid /tmp/nginx.pid;
    error_log stderr;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
      server {
        listen 8080;
        proxy_ssl_certificate /tmp/tls/tls.crt;
        proxy_ssl_certificate_key /tmp/tls/tls.key;
        proxy_ssl_trusted_certificate /tmp/tls/ca.crt;
        proxy_ssl_protocols TLSv1.3;
        proxy_ssl_verify on;
        proxy_ssl_verify_depth 2;
        proxy_ssl_name ${3-shopfront.platform.cluster.local};
        location / { proxy_pass https://$ip:8080; }
        location /by-service/ { proxy_pass https://shopfront.platform:80/; }
      }
    }
---
apiVersion: v1
kind: Pod
metadata: { name: $1 }
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: $IMAGE
      command: [sh, -c, 'cp -RL /tls /tmp/tls && exec nginx -c /etc/nginx-lab/nginx.conf -e stderr']
      volumeMounts: [{ name: tls, mountPath: /tls }, { name: config, mountPath: /etc/nginx-lab }]
      readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
  volumes: [{ name: tls, secret: { secretName: $2 } }, { name: config, configMap: { name: $1 } }]
END
}

ingress_with_its_certificate() {
  local each
  ensure_platform
  eventually 5 kubectl -n ingress get secret byrnie-ingress-client
  nginx nginx byrnie-ingress-client
  ready ingress pod/nginx
  eventually 2 get legacy stranger "http://$(ip_of ingress nginx):8080/"
  for each in / /by-service/; do
    holds "$(get legacy stranger "http://$(ip_of ingress nginx):8080$each")" shopfront
  done
}

a_wrong_name_is_refused() {
  ensure_platform
  nginx wrong byrnie-ingress-client web.shop.cluster.local
  ready ingress pod/wrong
  holds "$(status legacy stranger "http://$(ip_of ingress wrong):8080/")" 502
  holds "$(kubectl -n ingress logs wrong)" "does not match"
}

another_principal_is_refused() {
  ensure_platform
  eventually 5 kubectl -n ingress get secret other-client
  nginx other other-client
  ready ingress pod/other
  holds "$(status legacy stranger "http://$(ip_of ingress other):8080/")" 502
  holds "$(kubectl -n platform logs "$(pod_of platform shopfront)" -c byrnie-proxy)" no-ingress-rule
  turned_away legacy stranger -k "https://$(ip_of platform "$(pod_of platform shopfront)"):8080/"
}

egress_is_as_allowed() {
  ensure_platform
  cat << END | apply legacy
apiVersion: v1
kind: Pod
metadata: { name: outside }
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers: [{ name: app, image: $IMAGE, command: [byrnie-test-app, serve, --http=19001, --http=19002, --name=outside] }]
END
  ready legacy pod/outside
  # A node's own address may stand for pods, by its ports; on ours, another one is nobody's in the cluster.
  local host
  host=${BYRNIE_OUTSIDE_IP:-$(ip_of legacy outside)}
  get legacy stranger "http://$host:19001/"
  # What nobody has allowed is denied; so is what a mesh allows that then denies it.
  denied "http://$host:19001/" || fail "nobody has allowed it"
  mesh_config 'egress: { default: Allow }'
  eventually 1 get platform caller "http://$host:19002/"
  mesh_config
  kubectl -n platform apply -f - << END
apiVersion: byrnie.dev/v1alpha1
kind: EgressPolicy
metadata: { name: to-partner }
spec: { serviceAccounts: [caller], to: [{ cidrs: ["$host/32"], ports: [19001] }] }
END
  eventually 1 denied "http://$host:19002/"
  eventually 1 get platform caller "http://$host:19001/"
  # The cluster's own addresses are no egress.
  get platform caller http://shopfront/
}

denied() { is_turned_away platform caller "$1"; }
