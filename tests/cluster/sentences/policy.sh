# Policies in pods that run already. Sourced by main.
# shellcheck shell=bash

sentences_policy() {
  sentence a_deny_cuts_within_a_second "a Deny holds within a second for new connections, and cuts the open one"
  sentence an_allow_shuts_out_others "an Allow shuts out everybody else"
  sentence invalid_policies_are_refused "an invalid policy is refused with the name of its field, and nothing changes"
  sentence policies_show_that_they_hold "a policy's status says that it holds, and kubectl get byrnie lists it"
}

ensure_rules() {
  ! kubectl -n rules get pod asker &> /dev/null || return 0
  enrolled rules
  { app server --http=8080 && echo --- && client asker && echo --- && client friend; } | apply rules
  ready rules deploy/server pod/asker pod/friend
}

# authorization NAME ACTION FROM
authorization() {
  kubectl -n rules apply -f - << END
apiVersion: byrnie.dev/v1alpha1
kind: AuthorizationPolicy
metadata: { name: $1 }
spec: { selector: { matchLabels: { app: server } }, action: $2, rules: [{ from: [{ serviceAccount: $3 }] }] }
END
}

a_deny_cuts_within_a_second() {
  local holding denied ended
  ensure_rules
  get rules asker http://server/
  inside rules asker byrnie-test-app hold server:9000 > "$work/hold.out" 2>&1 &
  holding=$!
  eventually 2 grep -q open "$work/hold.out"
  authorization no-asker Deny asker
  denied=$(now)
  eventually 1 is_turned_away rules asker http://server/
  echo "figure: a Deny held for new connections after $(($(now) - denied)) ms"
  wait $holding || true
  ended=$(sed -n 's/^ended at \([0-9]*\) .*/\1/p' "$work/hold.out")
  [[ -n $ended ]] || fail "the open connection: $(cat "$work/hold.out")"
  echo "figure: the open connection was cut after $((ended - denied)) ms"
  ((ended - denied < 5000)) || fail "not within five times the second that is promised on a quiet machine"
  get rules friend http://server/
  kubectl -n rules delete authorizationpolicy no-asker
  eventually 1 get rules asker http://server/
}

an_allow_shuts_out_others() {
  ensure_rules
  authorization friends-only Allow friend
  eventually 1 is_turned_away rules asker http://server/
  get rules friend http://server/
  kubectl -n rules delete authorizationpolicy friends-only
  eventually 1 get rules asker http://server/
}

invalid_policies_are_refused() {
  ensure_rules
  local said
  said=$(! authorization bad Perhaps asker 2>&1) || fail "it was taken: $said"
  holds "$said" spec.action
  said=$(! kubectl -n rules apply -f - 2>&1 << 'END'
apiVersion: byrnie.dev/v1alpha1
kind: IngressPolicy
metadata: { name: bad }
spec: { principals: [nginx] }
END
  ) || fail "it was taken: $said"
  holds "$said" principals
  said=$(! kubectl -n rules apply -f - 2>&1 << 'END'
apiVersion: byrnie.dev/v1alpha1
kind: MtlsPolicy
metadata: { name: bad }
spec: { mode: Strict, mod: Permissive }
END
  ) || fail "it was taken: $said"
  holds "$said" mod
  get rules asker http://server/
}

policies_show_that_they_hold() {
  ensure_rules
  authorization no-stranger Deny stranger
  kubectl -n rules wait --for=condition=Accepted authorizationpolicy/no-stranger --timeout=10s
  holds "$(kubectl -n rules get byrnie)" no-stranger
  kubectl -n rules delete authorizationpolicy no-stranger
}
