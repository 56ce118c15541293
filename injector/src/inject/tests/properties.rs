//! Any pod: no panic, and an injection of an injected pod changes nothing.

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::*;

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z]{1,3}",
        1 => Just("byrnie-proxy".to_owned()),
        1 => Just("byrnie-capture".to_owned()),
        1 => Just("istio-proxy".to_owned()),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-1..70_000_i32).prop_map(Value::from),
        Just(json!(15021)),
        Just(json!("http")),
        "[a-z0-9]{0,3}".prop_map(Value::from),
    ]
}

fn handler() -> impl Strategy<Value = Value> {
    prop_oneof![
        (port(), ".{0,6}", proptest::option::of("[a-zH]{0,5}"))
            .prop_map(|(port, path, scheme)| { json!({"httpGet": {"port": port, "path": path, "scheme": scheme}}) }),
        (name(), "[a-z]{1,8}").prop_map(|(container, kind)| {
            json!({"httpGet": {"port": 15021, "path": format!("/probe/{}/{container}/{kind}", nonce().as_str())}})
        }),
        port().prop_map(|port| json!({"tcpSocket": {"port": port}})),
        any::<i32>().prop_map(|port| json!({"grpc": {"port": port, "service": "s$(X)"}})),
        Just(json!({"exec": {"command": ["true"]}})),
        Just(json!({})),
    ]
}

fn probe() -> impl Strategy<Value = Value> {
    (handler(), proptest::option::of(any::<i32>())).prop_map(|(mut probe, timeout)| {
        if let Some(timeout) = timeout {
            probe["timeoutSeconds"] = json!(timeout);
        }
        probe
    })
}

fn container() -> impl Strategy<Value = Value> {
    let optional = || proptest::option::weighted(0.3, probe());
    (name(), optional(), optional(), optional(), proptest::option::weighted(0.3, handler()), any::<bool>(), any::<bool>())
        .prop_map(|(name, startup, readiness, liveness, hook, sidecar, forged)| {
            let mut container = json!({"name": name, "ports": [{"name": "http", "containerPort": 80}]});
            for (field, probe) in [("startupProbe", startup), ("readinessProbe", readiness), ("livenessProbe", liveness)] {
                if let Some(probe) = probe {
                    container[field] = probe;
                }
            }
            if let Some(hook) = hook {
                container["lifecycle"] = json!({"preStop": hook});
            }
            if sidecar {
                container["restartPolicy"] = json!("Always");
            }
            if forged {
                container["env"] = json!([{"name": PROBES, "value":
                    "{\"nonce\":\"abababababababababababababababab\",\"probes\":{\"a/liveness\":{\"action\":{\"tcpSocket\":{\"port\":1}},\"timeoutSeconds\":4294967295}}}"}]);
            }
            container
        })
}

fn any_pod() -> impl Strategy<Value = Value> {
    let annotation =
        prop_oneof![Just(labels::EXCLUDE_INBOUND_PORTS), Just(labels::LOG_LEVEL), Just(labels::EXCLUDE_UIDS)];
    let annotations = proptest::collection::btree_map(annotation, "[0-9]{1,5}|info|.{0,3}", 0..2);
    let containers = |most| proptest::collection::vec(container(), 0..most);
    (containers(4), containers(3), annotations, proptest::option::of(any::<i64>())).prop_map(
        |(containers, init, annotations, grace)| {
            json!({
                "metadata": {"annotations": annotations},
                "spec": {"containers": containers, "initContainers": init, "terminationGracePeriodSeconds": grace, "new": 1},
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn injecting_an_injected_pod_changes_nothing(sent in any_pod()) {
        let pod = Pod::deserialize(&sent).unwrap();
        if let Ok(Outcome::Injected { pod: once, .. }) = inject(&pod, &shop(), &settings(), Nonce::new([1; 16])) {
            let again = inject(&once, &shop(), &settings(), Nonce::new([2; 16]));
            prop_assert_eq!(again, Ok(Outcome::PassedBy(PassedBy::AlreadyInjected)));
            let grafted = graft(&sent, &once);
            prop_assert_eq!(&Pod::deserialize(&grafted).unwrap(), &*once);
            prop_assert_eq!(&grafted["spec"]["new"], &json!(1));
            prop_assert_eq!(&names(init(&once))[..2], &["byrnie-capture", "byrnie-proxy"]);
        }
    }
}
