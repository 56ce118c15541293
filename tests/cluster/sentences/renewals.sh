# Certificates that end while they are used. Sourced by main.
# shellcheck shell=bash disable=SC2154

sentences_renewals() {
  sentence renewals_lose_nothing "certificates of half a minute are renewed under load, nginx's too, and without the API server"
}

# Seconds. Much less than a MeshConfig may say, so that several lives end in a test.
readonly SHORT_LIFE=30

renewals_lose_nothing() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || { echo "the API server can't be stopped from here" && exit 77; }
  local code=0 old
  ensure_platform
  old=$(kubectl -n byrnie-system get pods -l app.kubernetes.io/component=control-plane -o name)
  # In the background, because what fails in it must end it, and not this function.
  {
    kubectl -n byrnie-system patch deploy byrnie-control-plane --type=json \
      -p "[{\"op\": \"add\", \"path\": \"/spec/template/spec/containers/0/args/-\", \"value\": \"--svid-ttl=${SHORT_LIFE}s\"}]"
    ready byrnie-system deploy/byrnie-control-plane
    # What they issue while they end is good for a day.
    # shellcheck disable=SC2086 # several names
    kubectl -n byrnie-system wait --for=delete $old --timeout=60s
    nginx_is_renewed_under_load
    renewed_without_the_api_server
  } &
  wait $! || code=$?
  # What is said last is what failed.
  kubectl -n byrnie-system rollout undo deploy/byrnie-control-plane > /dev/null
  ready byrnie-system deploy/byrnie-control-plane > /dev/null
  return $code
}

nginx_is_renewed_under_load() {
  # Certificates that were there live for a day.
  kubectl -n platform delete pod -l app=shopfront
  ready platform deploy/shopfront
  kubectl -n ingress delete pod renewed --ignore-not-found
  kubectl -n ingress delete secret byrnie-ingress-client
  eventually 6 kubectl -n ingress get secret byrnie-ingress-client
  nginx renewed byrnie-ingress-client
  ready ingress pod/renewed
  begin_load legacy through-nginx "$(ip_of ingress renewed):8080"
  local each first
  first=$(ingress_certificate)
  for each in 1 2 3; do renew_nginx "$(ingress_certificate)"; done
  ! base64 -d <<< "$first" | openssl x509 -noout -checkend 0 || fail "the first certificate has not ended yet"
  end_load legacy through-nginx
  lost_nothing through-nginx
}

# What an ingress controller does when the Secret has changed, which it reads from the API server: the kubelet takes up to a
# minute to bring it into a pod. The control plane looks at it every five seconds; a certificate is due in the half of its
# life.
renew_nginx() {
  local secret each text
  eventually 6 is_renewed "$1"
  secret=$(kubectl -n ingress get secret byrnie-ingress-client -o json)
  for each in tls.crt tls.key; do
    text=$(jq -er --arg name $each '.data[$name]' <<< "$secret")
    eventually 1 put ingress renewed /tmp/tls/$each "$text"
  done
  inside ingress renewed nginx -c /etc/nginx-lab/nginx.conf -e stderr -s reload
}

# put NAMESPACE POD FILE BASE64: whether it is there; one in ten short inputs never reaches the command of `kubectl exec`.
put() {
  base64 -d <<< "$4" | kubectl -n "$1" exec -i "$2" -c app -- sh -c "cat > $3"
  [[ $(inside "$1" "$2" base64 -w 0 "$3") == "$4" ]]
}

is_renewed() {
  local now
  now=$(ingress_certificate) && [[ -n $now && $now != "$1" ]]
}

ingress_certificate() { kubectl -n ingress get secret byrnie-ingress-client -o 'jsonpath={.data.tls\.crt}'; }

# It answers nobody and refuses nobody: who asks it waits. No certificate of before is valid at the end.
renewed_without_the_api_server() {
  local pid before
  begin_load platform direct shopfront:80
  sleep 2
  before=$(certificate_of platform direct)
  pid=$(pgrep -x kube-apiserver)
  kill -STOP "$pid"
  sleep $((SHORT_LIFE + 5))
  kill -CONT "$pid"
  [[ $(certificate_of platform direct) != "$before" ]] || fail "its certificate is still the one of before"
  end_load platform direct
  lost_nothing direct
}

certificate_of() { "$BYRNIE" identity show "$2" -n "$1" -o pem; }
