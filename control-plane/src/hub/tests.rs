use std::{collections::HashMap, time::Duration};

use byrnie_proto::mesh::v1::WatchResponse;

use super::*;

struct Fixed(HashMap<&'static str, String>);

impl View for Fixed {
    fn is_personal(&self, name: &str) -> bool {
        name.starts_with("self")
    }

    fn answer(&self, name: &str, viewer: &Arc<str>) -> Body {
        let text = self.0.get(name).cloned().unwrap_or_default();
        Body::Error(if self.is_personal(name) { format!("{viewer}:{text}") } else { text })
    }
}

fn view(pairs: &[(&'static str, &str)]) -> Arc<dyn View> {
    Arc::new(Fixed(pairs.iter().map(|(name, text)| (*name, (*text).to_owned())).collect()))
}

async fn told(session: &Session) -> Vec<(String, String, u64)> {
    let fields = session.next().await;
    let response = WatchResponse::decode(fields.concat().as_slice()).unwrap();
    let text = |resource: Resource| match resource.body.unwrap() {
        Body::Error(text) => (resource.name, text, resource.version),
        other => panic!("{other:?}"),
    };
    response.resources.into_iter().map(text).collect()
}

async fn is_quiet(session: &Session) -> bool {
    tokio::time::timeout(Duration::from_millis(20), session.next()).await.is_err()
}

#[tokio::test]
async fn a_subscriber_gets_the_present_answer_and_then_changes_only() {
    let hub = Hub::new(view(&[("a", "1"), ("b", "1")]), SystemTime::UNIX_EPOCH);
    let session = hub.join("u1".into());
    session.subscribe("a").unwrap();
    let first = told(&session).await;
    assert_eq!((first[0].0.as_str(), first[0].1.as_str()), ("a", "1"));

    hub.publish(view(&[("a", "1"), ("b", "2")]));
    assert!(is_quiet(&session).await, "b is nobody's, a is the same");

    hub.publish(view(&[("a", "2"), ("b", "2")]));
    let second = told(&session).await;
    assert_eq!(second[0].1, "2");
    assert!(second[0].2 > first[0].2, "versions rise");
}

#[tokio::test]
async fn changes_that_come_faster_than_they_are_taken_become_one() {
    let hub = Hub::new(view(&[("a", "1")]), SystemTime::UNIX_EPOCH);
    let session = hub.join("u1".into());
    session.subscribe("a").unwrap();
    for text in ["2", "3", "4"] {
        hub.publish(view(&[("a", text)]));
    }
    assert_eq!(told(&session).await[0].1, "4");
    assert!(is_quiet(&session).await);
}

#[tokio::test]
async fn personal_answers_differ_and_shared_ones_share_their_bytes() {
    let hub = Hub::new(view(&[("a", "x"), ("self", "s")]), SystemTime::UNIX_EPOCH);
    let (one, two) = (hub.join("u1".into()), hub.join("u2".into()));
    for session in [&one, &two] {
        session.subscribe("a").unwrap();
    }
    let (first, second) = (one.next().await, two.next().await);
    assert_eq!(first[0].as_ptr(), second[0].as_ptr());

    for session in [&one, &two] {
        session.subscribe("self").unwrap();
    }
    assert_eq!(told(&one).await[0].1, "u1:s");
    assert_eq!(told(&two).await[0].1, "u2:s");
    hub.publish(view(&[("a", "x"), ("self", "t")]));
    assert_eq!(told(&one).await[0].1, "u1:t");
}

#[tokio::test]
async fn whoever_leaves_or_unsubscribes_is_forgotten() {
    let hub = Hub::new(view(&[("a", "1"), ("b", "1")]), SystemTime::UNIX_EPOCH);
    let session = hub.join("u1".into());
    session.subscribe("a").unwrap();
    session.subscribe("b").unwrap();
    session.next().await;
    session.unsubscribe("a");
    session.unsubscribe("never");
    assert_eq!(hub.resources(), 1);
    hub.publish(view(&[("a", "2"), ("b", "1")]));
    assert!(is_quiet(&session).await);
    drop(session);
    assert_eq!(hub.resources(), 0);
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let hub = Hub::new(view(&[]), SystemTime::UNIX_EPOCH);
    let session = hub.join("u1".into());
    for index in 0..crate::limits::SUBSCRIPTIONS {
        session.subscribe(&format!("n{index}")).unwrap();
    }
    assert!(session.subscribe("one-more").is_err());
    session.subscribe("n0").unwrap();
    let mut seen = 0;
    while seen < crate::limits::SUBSCRIPTIONS {
        let fields = session.next().await;
        assert!(fields.len() <= crate::limits::RESOURCES_PER_RESPONSE);
        seen += fields.len();
    }
}
