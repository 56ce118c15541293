# Nothing is lost while pods come and go. Sourced by main.
# shellcheck shell=bash

sentences_rollout() {
  sentence rolling_update_loses_nothing "a rolling update under constant load loses no request"
  sentence scaling_loses_nothing "scaling up and down under constant load loses no request"
  sentence eviction_loses_nothing "evicting a pod under constant load loses no request"
  sentence a_leaving_client_loses_nothing "a client that asks until it is told to end loses no request"
  sentence the_control_plane_rolls_unseen "a rolling restart of the control plane and the injector is seen by nobody"
  sentence a_client_from_its_first_request "a client's first request as soon as its container runs is answered"
}

# while_loaded COMMAND…: runs it while a client asks all the time, and then some.
while_loaded() {
  local code=0 loading
  ensure_rolling
  inside roll loader rm -f /tmp/stop
  inside roll loader byrnie-test-app load server:80 --rate 40 --seconds 120 --until /tmp/stop > "$work/load.out" 2>&1 &
  loading=$!
  sleep 1
  "$@"
  sleep 2
  inside roll loader touch /tmp/stop
  wait $loading || code=$?
  cat "$work/load.out"
  echo "figure: $(grep -m 1 ' good, ' "$work/load.out")"
  ((code == 0)) || fail "requests were lost"
}

ensure_rolling() {
  ! kubectl -n roll get pod loader &> /dev/null || return 0
  enrolled roll
  { replicas=3 app server && echo --- && client loader; } | apply roll
  ready roll deploy/server pod/loader
  inside roll loader byrnie-test-app load server:80 --seconds 1
}

rolling_update_loses_nothing() { while_loaded roll_twice; }

roll_twice() {
  for _ in 1 2; do
    kubectl -n roll rollout restart deploy/server
    ready roll deploy/server
  done
}

scaling_loses_nothing() { while_loaded scale_up_and_down; }

scale_up_and_down() {
  for each in 6 1 3; do
    kubectl -n roll scale deploy/server --replicas=$each
    ready roll deploy/server
    sleep 2
  done
}

eviction_loses_nothing() { while_loaded evict_one; }

evict_one() {
  local pod
  pod=$(pod_of roll server)
  kubectl create --raw "/api/v1/namespaces/roll/pods/$pod/eviction" -f - <<< \
    "{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {\"name\": \"$pod\", \"namespace\": \"roll\"}}"
  kubectl -n roll wait --for=delete "pod/$pod" --timeout=60s
  ready roll deploy/server
}

a_leaving_client_loses_nothing() {
  ensure_rolling
  cat << END | apply roll
apiVersion: v1
kind: Pod
metadata: { name: leaver }
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  containers:
    - name: app
      image: $IMAGE
      command: [sh, -c, 'trap "touch /tmp/stop" TERM; byrnie-test-app load server:80 --rate 40 --seconds 60 --until /tmp/stop & wait; wait']
END
  ready roll pod/leaver
  kubectl -n roll logs -f leaver -c app > "$work/leaver.out" &
  sleep 2
  kubectl -n roll delete pod leaver --timeout=60s
  wait $!
  cat "$work/leaver.out"
  grep -q '^[1-9][0-9]* good, 0 failed$' "$work/leaver.out" || fail "requests were lost, or not counted"
}

the_control_plane_rolls_unseen() {
  local code=0 asking slow
  ensure_rolling
  rm -f "$work/rolled"
  ask_the_webhook > "$work/asked.out" 2> /dev/null &
  asking=$!
  slow_services &
  slow=$!
  # In the background, so that what fails does not end this sentence before the other one.
  while_loaded roll_byrnie &
  wait $! || code=$?
  touch "$work/rolled"
  wait $slow || fail "kube-proxy could not be slowed down"
  wait $asking || fail "the webhook did not always answer: $(cat "$work/asked.out")"
  grep '^figure: ' "$work/asked.out" || true
  echo "figure: $(tail -n 1 "$work/asked.out")"
  return $code
}

# On a large cluster kube-proxy is seconds behind; who leaves must be there for as long.
slow_services() {
  [[ -n ${BYRNIE_LOCAL_NODE-} ]] || return 0
  local pid
  pid=$(pgrep -x kube-proxy)
  until [[ -e $work/rolled ]]; do
    kill -STOP "$pid"
    sleep 3
    kill -CONT "$pid"
    sleep 0.5
  done
}

# Makes pods by dry run, one after another, until `rolled` is there: the API server asks the webhook about each. It must
# never wait for one that is gone, and who is told of an error at once and asks again, as controllers do, is answered.
ask_the_webhook() {
  local good=0 again=0 failed=0 begun said
  until [[ -e $work/rolled ]]; do
    begun=$SECONDS
    if said=$(asked); then
      good=$((good + 1))
    elif ((SECONDS - begun < 4)) && asked; then
      again=$((again + 1))
      echo "figure: asked again after $said"
    else
      failed=$((failed + 1))
      echo "after $((SECONDS - begun)) s: $said"
    fi
  done
  echo "$good pods admitted, $again when asked for again, $failed not"
  ((good > 0 && failed == 0 && again < 2))
}

asked() { kubectl -n roll run asked --image="$IMAGE" --dry-run=server -o name 2>&1; }

roll_byrnie() {
  kubectl -n byrnie-system rollout restart deploy/byrnie-control-plane deploy/byrnie-injector
  # A pod that is made meanwhile comes up, with a proxy.
  kubectl -n roll delete pod "$(pod_of roll server)" --wait=false
  ready byrnie-system deploy/byrnie-control-plane deploy/byrnie-injector
  ready roll deploy/server
  # A proxy whose replica ends is without one for some hundred milliseconds.
  eventually 2 "$BYRNIE" check
}

a_client_from_its_first_request() {
  ensure_rolling
  kubectl -n roll run early --image="$IMAGE" --restart=Never --command -- curl -sS --fail --max-time 5 http://server/
  kubectl -n roll wait --for=jsonpath='{.status.phase}'=Succeeded pod/early --timeout=60s ||
    fail "$(kubectl -n roll logs early -c early)"
}
