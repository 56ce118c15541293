use std::time::SystemTime;

use byrnie_api::MeshSettings;
use serde_json::{Value, json};

use super::{
    super::testing::{Answer, Asked, fake},
    *,
};
use crate::source::{Object, ObjectKey, Objects, Stored};

const UID: &str = "6f1c3a0e-0000-4000-8000-000000000001";

/// A token as far as it can be read without a key.
fn token(payload: &Value) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2ln", part(&json!({"alg": "RS256"})), part(payload))
}

fn good_token() -> String {
    token(&json!({"aud": ["byrnie.dev/ca"], "sub": "system:serviceaccount:shop:web"}))
}

fn good_status() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["byrnie.dev/ca"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-0"],
                "authentication.kubernetes.io/pod-uid": [UID],
            },
        },
    })
}

fn review_with(status: &Value) -> Answer {
    Answer::json(
        201,
        &json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "spec": {"token": ""}, "status": status}),
    )
}

fn pod(uid: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": "shop", "uid": uid,
            "annotations": {"byrnie.dev/injected": "0.1.0"}},
        "spec": {
            "serviceAccountName": account,
            "initContainers": [
                {"name": "byrnie-capture", "image": "x"},
                {"name": "byrnie-proxy", "image": "x", "restartPolicy": "Always"},
            ],
            "containers": [{"name": "web", "image": "x"}],
        },
        "status": {"podIP": "10.0.0.1"},
    })
}

/// A model with these objects.
fn model(objects: &[Value]) -> Model {
    let mut items = std::collections::BTreeMap::new();
    for value in objects {
        let kind = value["kind"].as_str().unwrap();
        let object = match kind {
            "Pod" => Object::Pod(Box::new(serde_json::from_value(value.clone()).unwrap())),
            _ => Object::Namespace(Box::new(serde_json::from_value(value.clone()).unwrap())),
        };
        let part = |name: &str| value["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = ObjectKey { kind: kind.to_owned(), namespace: part("namespace"), name: part("name") };
        items.insert(Arc::new(key), Stored { object: Arc::new(object), file: "".into(), line: 0 });
    }
    let objects = Objects { items, meshed_by: MeshedBy::Sidecar, ..Objects::default() };
    Model::build(&objects, &Arc::new(MeshSettings::default()))
}

fn enrolled() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"byrnie.dev/mesh": "enabled"}}})
}

fn reviewer(answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> (Reviewer, Arc<Mutex<Vec<Asked>>>) {
    let (client, seen) = fake(answer);
    let (clock, _) = Clock::manual(SystemTime::now());
    (Reviewer::new(client, clock), seen)
}

async fn cause_of_review(token: &str, status: Value) -> &'static str {
    let (reviewer, _) = reviewer(move |_| review_with(&status));
    reviewer.review(token, || true).await.unwrap_err().cause()
}

#[tokio::test]
async fn a_token_says_which_pod_it_is_bound_to_and_is_asked_about_once() {
    let (reviewer, seen) = reviewer(|_| review_with(&good_status()));
    let claims = reviewer.review(&good_token(), || true).await.unwrap();
    let expected = Claims {
        namespace: "shop".to_owned(),
        service_account: "web".to_owned(),
        pod: "web-0".to_owned(),
        uid: UID.into(),
    };
    assert_eq!(claims, expected);
    assert_eq!(reviewer.review(&good_token(), || false).await.unwrap(), expected);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/apis/authentication.k8s.io/v1/tokenreviews");
    assert_eq!(seen[0].json()["spec"]["audiences"], json!(["byrnie.dev/ca"]));
}

#[tokio::test]
async fn what_is_remembered_of_a_token_is_asked_anew_after_a_minute() {
    let (client, seen) = fake(|_| review_with(&good_status()));
    let (clock, time) = Clock::manual(SystemTime::now());
    let reviewer = Reviewer::new(client, clock);
    reviewer.review(&good_token(), || true).await.unwrap();
    time.advance(limits::TOKEN_KNOWN);
    reviewer.review(&good_token(), || true).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn what_can_be_no_token_for_us_is_not_asked_about() {
    let (reviewer, seen) = reviewer(|_| review_with(&good_status()));
    let cases = [
        (String::new(), "no-credential"),
        ("x".repeat(limits::SERVICE_ACCOUNT_TOKEN_BYTES + 1), "token-malformed"),
        ("no token".to_owned(), "token-malformed"),
        ("a.%%%.c".to_owned(), "token-malformed"),
        ("a.b.c.d".to_owned(), "token-malformed"),
        (token(&json!([])), "token-malformed"),
        (token(&json!({"aud": 7})), "token-malformed"),
        (token(&json!({"aud": "https://kubernetes.default.svc"})), "wrong-audience"),
        (token(&json!({"aud": ["vault", "other"]})), "wrong-audience"),
        (token(&json!({"sub": "system:serviceaccount:shop:web"})), "wrong-audience"),
    ];
    for (token, cause) in cases {
        let refused = reviewer.review(&token, || true).await.unwrap_err();
        assert_eq!(refused.cause(), cause, "{refused}");
        assert!(token.len() < 20 || !refused.to_string().contains(&token));
    }
    assert_eq!(reviewer.review(&good_token(), || false).await.unwrap_err().cause(), "rate-limited");
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_does_not_clearly_say_yes_is_a_no() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut status = good_status();
        change(&mut status);
        status
    };
    let extra = |status: &mut Value, key: &str, value: Value| {
        status["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = value;
    };
    let cases = [
        (json!({}), "token-review-failed"),
        (json!({"authenticated": false, "error": "invalid bearer token"}), "token-review-failed"),
        (with(&|status| status["audiences"] = json!([])), "wrong-audience"),
        (with(&|status| status["audiences"] = json!(["other"])), "wrong-audience"),
        (with(&|status| status["user"]["username"] = "admin".into()), "not-a-service-account"),
        (with(&|status| status["user"]["username"] = "system:serviceaccount:shop".into()), "not-a-service-account"),
        (with(&|status| status["user"]["username"] = "system:serviceaccount:a/b:c".into()), "not-a-service-account"),
        (with(&|status| status["user"]["extra"] = json!({})), "token-not-bound"),
        (with(&|status| extra(status, "pod-name", json!(["../x"]))), "token-not-bound"),
        (with(&|status| extra(status, "pod-uid", json!([]))), "token-not-bound"),
        (with(&|status| extra(status, "pod-uid", json!(["a", "b"]))), "token-not-bound"),
    ];
    for (status, cause) in cases {
        assert_eq!(cause_of_review(&good_token(), status.clone()).await, cause, "{status}");
    }
}

#[tokio::test]
async fn an_api_server_that_can_not_be_asked_is_no_answer_about_the_token() {
    for code in [401, 403, 500, 503] {
        let (reviewer, _) = reviewer(move |_| Answer::status(code, "no"));
        let refused = reviewer.review(&good_token(), || true).await.unwrap_err();
        assert_eq!((refused.cause(), refused.code()), ("api-server-unavailable", Code::Unavailable));
    }
}

#[tokio::test]
async fn a_pod_that_the_source_does_not_show_yet_is_asked_for_by_its_uid() {
    let claims = read(serde_json::from_value(good_status()).unwrap()).unwrap();
    let (known, _) = reviewer(|_| Answer::status(500, "not asked"));
    let model_with = model(&[enrolled(), pod(UID, "web")]);
    assert_eq!(known.pod(&model_with, &claims).await.unwrap().place(), "shop/web-0");

    let nothing = model(&[]);
    let (fresh, seen) = reviewer(|_| Answer::json(200, &pod(UID, "web")));
    assert_eq!(&*fresh.pod(&nothing, &claims).await.unwrap().uid, UID);
    assert_eq!(seen.lock().unwrap()[0].path, "/api/v1/namespaces/shop/pods/web-0");

    let (gone, _) = reviewer(|_| Answer::status(404, "NotFound"));
    assert_eq!(gone.pod(&nothing, &claims).await.unwrap_err().cause(), "pod-gone");
    let (next, _) = reviewer(|_| Answer::json(200, &pod("another-uid", "web")));
    assert_eq!(next.pod(&nothing, &claims).await.unwrap_err().cause(), "pod-gone");
    let (away, _) = reviewer(|_| Answer::status(503, "ServiceUnavailable"));
    assert_eq!(away.pod(&nothing, &claims).await.unwrap_err().cause(), "api-server-unavailable");
}

#[tokio::test]
async fn a_pod_of_another_service_account_name_or_without_a_proxy_gets_nothing() {
    let claims = read(serde_json::from_value(good_status()).unwrap()).unwrap();
    let (reviewer, _) = reviewer(|_| Answer::status(500, "not asked"));
    let other_account = model(&[enrolled(), pod(UID, "admin")]);
    assert_eq!(reviewer.pod(&other_account, &claims).await.unwrap_err().cause(), "wrong-service-account");
    let mut renamed = pod(UID, "web");
    renamed["metadata"]["name"] = "web-1".into();
    assert_eq!(reviewer.pod(&model(&[enrolled(), renamed]), &claims).await.unwrap_err().cause(), "pod-gone");
    let mut bare = pod(UID, "web");
    bare["spec"]["initContainers"] = json!([]);
    bare["metadata"]["annotations"] = json!({"byrnie.dev/inject": "false"});
    let refused = reviewer.pod(&model(&[enrolled(), bare]), &claims).await.unwrap_err();
    assert_eq!(refused.cause(), "not-injected");
}

#[tokio::test]
async fn what_is_remembered_of_tokens_is_bounded() {
    let (reviewer, _) = reviewer(|_| review_with(&good_status()));
    let claims = read(serde_json::from_value(good_status()).unwrap()).unwrap();
    for number in 0..limits::TOKENS_KNOWN + 10 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_be_bytes());
        reviewer.remember(key, &claims);
    }
    assert_eq!(reviewer.known.lock().unwrap().len(), limits::TOKENS_KNOWN);
}
