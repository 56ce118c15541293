use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use byrnie_identity::ManualClock;
use prost::Message;

use super::*;

struct Rig {
    _home: tempfile::TempDir,
    path: PathBuf,
    clock: Clock,
    time: ManualClock,
}

fn rig() -> Rig {
    let home = tempfile::tempdir().unwrap();
    let (clock, time) = Clock::manual(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    Rig { path: home.path().join("journal.redb"), _home: home, clock, time }
}

impl Rig {
    fn open(&self) -> Journal {
        // The writer thread of a journal that was just dropped still holds the file for a moment.
        for _ in 0..200 {
            if let Ok(journal) = Journal::open(&self.path, self.clock.clone()) {
                return journal;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Journal::open(&self.path, self.clock.clone()).unwrap()
    }

    fn issuance(&self, uid: &str, serial: &str, ttl: i64) -> Issuance {
        let now = unix(self.clock.wall());
        Issuance {
            holder: Holder::Pod(uid.into()),
            workload: "shop/web".to_owned(),
            spiffe_id: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            serial: serial.to_owned(),
            issuer: "CN=issuer".to_owned(),
            not_before: now,
            not_after: now + ttl,
            chain: vec![vec![1, 2, 3]],
        }
    }
}

/// Public keys, as far as the journal is concerned.
const KEY: &[u8] = b"a public key";
const OTHER_KEY: &[u8] = b"another one";

fn binding() -> TokenBinding {
    TokenBinding { namespace: "shop".to_owned(), service_account: "web".to_owned(), pod: "web-0".to_owned() }
}

#[tokio::test]
async fn a_token_is_good_for_one_key_also_after_a_restart() {
    let rig = rig();
    let journal = rig.open();
    let made = journal.create_token(binding(), Duration::ZERO).await.unwrap();
    let used = || TokenError::Used { id: made.id.clone() };
    assert_eq!(journal.check_token(&made.token, KEY), Ok(binding()));
    assert_eq!(journal.check_token(&made.token, OTHER_KEY), Ok(binding()), "nobody has used it yet");
    let mut journal = journal;
    for _ in 0..2 {
        assert_eq!(journal.spend_token(&made.token, KEY).await, Ok(binding()));
        for other in [OTHER_KEY, b""] {
            assert_eq!(journal.check_token(&made.token, other), Err(used()));
            assert_eq!(journal.spend_token(&made.token, other).await, Err(used()));
        }
        assert_eq!(journal.check_token(&made.token, KEY), Ok(binding()));
        drop(journal);
        journal = rig.open();
    }
}

#[tokio::test]
async fn of_many_keys_that_spend_one_token_at_once_one_succeeds_and_each_time() {
    let rig = rig();
    let journal = Arc::new(rig.open());
    let token = Arc::new(journal.create_token(binding(), Duration::ZERO).await.unwrap().token);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32_u8 {
        let (journal, token, key) = (journal.clone(), token.clone(), number % 4);
        tasks.spawn(async move { journal.spend_token(&token, &[key]).await.is_ok().then_some(key) });
    }
    let spent: Vec<u8> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(spent.len() == 8 && spent.iter().all(|key| *key == spent[0]), "{spent:?}");
}

#[tokio::test]
async fn a_used_token_that_expired_or_was_revoked_is_worth_nothing_to_its_own_key() {
    let rig = rig();
    let journal = rig.open();
    let expiring = journal.create_token(binding(), Duration::from_secs(60)).await.unwrap();
    let revoked = journal.create_token(binding(), Duration::from_secs(3600)).await.unwrap();
    journal.spend_token(&expiring.token, KEY).await.unwrap();
    journal.spend_token(&revoked.token, KEY).await.unwrap();
    assert!(journal.revoke_token(&revoked.id).await.unwrap());
    drop(journal);
    let journal = rig.open();
    rig.time.advance(Duration::from_secs(60));
    assert!(matches!(journal.check_token(&expiring.token, KEY), Err(TokenError::Expired { .. })));
    assert!(matches!(journal.spend_token(&expiring.token, KEY).await, Err(TokenError::Expired { .. })));
    assert_eq!(journal.check_token(&revoked.token, KEY), Err(TokenError::Revoked { id: revoked.id.clone() }));
    assert_eq!(journal.spend_token(&revoked.token, KEY).await, Err(TokenError::Revoked { id: revoked.id.clone() }));
}

#[tokio::test]
async fn a_used_token_from_before_keys_were_recorded_is_good_for_none() {
    let rig = rig();
    let journal = rig.open();
    let made = journal.create_token(binding(), Duration::ZERO).await.unwrap();
    let secret = made.token.rsplit('.').next().unwrap();
    let TokenBinding { namespace, service_account, pod } = binding();
    let old = records::TokenRecord {
        hash: digest(&SHA256, secret.as_bytes()).as_ref().to_vec(),
        namespace,
        service_account,
        pod,
        expires: made.expires,
        state: records::TokenState::Used.into(),
        key: Vec::new(),
    };
    let write = Write::put(Table::Tokens, made.id.clone(), old.encode_to_vec());
    journal.store.commit(vec![write]).await.unwrap();
    drop(journal);
    let journal = rig.open();
    assert_eq!(journal.spend_token(&made.token, KEY).await, Err(TokenError::Used { id: made.id.clone() }));
}

#[tokio::test]
async fn a_token_that_one_of_two_uses_gives_back_stays_with_its_key() {
    let rig = rig();
    let mut journal = rig.open();
    let made = journal.create_token(binding(), Duration::ZERO).await.unwrap();
    let used = || TokenError::Used { id: made.id.clone() };
    journal.spend_token(&made.token, KEY).await.unwrap();
    for _ in 0..2 {
        journal.spend_token(&made.token, KEY).await.unwrap();
        journal.give_back_token(&made.token).await.unwrap();
        assert_eq!(journal.spend_token(&made.token, OTHER_KEY).await, Err(used()));
        // The first use counts after a restart too.
        drop(journal);
        journal = rig.open();
    }
    assert_eq!(journal.spend_token(&made.token, OTHER_KEY).await, Err(used()));
}

#[tokio::test]
async fn expired_revoked_and_unknown_tokens_are_refused_with_their_reason() {
    let rig = rig();
    let journal = rig.open();
    let expiring = journal.create_token(binding(), Duration::from_secs(60)).await.unwrap();
    let revoked = journal.create_token(binding(), Duration::from_secs(3600)).await.unwrap();
    assert!(journal.revoke_token(&revoked.id).await.unwrap());
    assert!(!journal.revoke_token("0000000000000000").await.unwrap());
    rig.time.advance(Duration::from_secs(61));
    assert!(matches!(journal.spend_token(&expiring.token, KEY).await, Err(TokenError::Expired { .. })));
    assert_eq!(journal.spend_token(&revoked.token, KEY).await, Err(TokenError::Revoked { id: revoked.id.clone() }));

    let forged = format!("byrnie-join.{}.{}", expiring.id, "0".repeat(64));
    for wrong in ["", "byrnie-join", "byrnie-join..", "x.y.z", forged.as_str()] {
        assert_eq!(journal.spend_token(wrong, KEY).await, Err(TokenError::Unknown), "{wrong}");
    }
}

#[tokio::test]
async fn a_token_that_was_spent_for_nothing_is_good_again_unless_it_was_revoked() {
    let rig = rig();
    let journal = rig.open();
    let made = journal.create_token(binding(), Duration::ZERO).await.unwrap();
    journal.spend_token(&made.token, KEY).await.unwrap();
    journal.give_back_token(&made.token).await.unwrap();
    drop(journal);
    let journal = rig.open();
    journal.spend_token(&made.token, OTHER_KEY).await.unwrap();
    assert!(journal.revoke_token(&made.id).await.unwrap());
    journal.give_back_token(&made.token).await.unwrap();
    assert_eq!(journal.spend_token(&made.token, OTHER_KEY).await, Err(TokenError::Revoked { id: made.id.clone() }));
}

#[tokio::test]
async fn the_secret_of_a_token_is_neither_on_the_disk_nor_in_debug_output() {
    let rig = rig();
    let journal = rig.open();
    let made = journal.create_token(binding(), Duration::ZERO).await.unwrap();
    let secret = made.token.rsplit('.').next().unwrap().to_owned();
    assert!(!format!("{made:?}{journal:?}").contains(&secret));
    let disk = std::fs::read(&rig.path).unwrap();
    assert!(!disk.windows(secret.len()).any(|window| window == secret.as_bytes()));
}

#[tokio::test]
async fn issuances_survive_a_restart_and_are_forgotten_after_their_expiry() {
    let rig = rig();
    let journal = rig.open();
    journal.record(rig.issuance("u1", "aa", 100)).await.unwrap();
    journal.record(rig.issuance("u1", "bb", 200)).await.unwrap();
    drop(journal);

    let journal = rig.open();
    assert_eq!(journal.by_serial("aa").unwrap().holder, Holder::Pod("u1".into()));
    assert_eq!(journal.newest(&Holder::Pod("u1".into())).unwrap().serial, "bb");
    rig.time.advance(Duration::from_secs(100));
    assert!(journal.by_serial("aa").is_none(), "expired, and not pruned yet");
    assert_eq!(journal.meshed_pods().len(), 1);
    rig.time.advance(Duration::from_secs(100));
    assert!(journal.newest(&Holder::Pod("u1".into())).is_none() && journal.by_serial("bb").is_none());
    rig.time.advance(limits::ISSUANCE_MEMORY);
    journal.prune(|_| false, Absent::Remember).await.unwrap();
    drop(journal);
    rig.time.step_wall(-150 - i64::try_from(limits::ISSUANCE_MEMORY.as_secs()).unwrap());
    assert!(rig.open().by_serial("bb").is_none(), "pruned from the disk");
}

#[tokio::test]
async fn a_pod_stays_meshed_when_its_certificate_ends_and_when_the_clock_was_wrong_for_a_moment() {
    let rig = rig();
    let journal = rig.open();
    journal.record(rig.issuance("u1", "aa", 100)).await.unwrap();
    journal.record(rig.issuance("u2", "bb", 100)).await.unwrap();
    rig.time.step_wall(200);
    journal.prune(|uid| uid == "u1", Absent::Remember).await.unwrap();
    assert_eq!(journal.meshed_pods().len(), 2, "u2 is remembered for a while");
    let year = 365 * 24 * 3600;
    rig.time.step_wall(year);
    journal.prune(|uid| uid == "u1", Absent::Remember).await.unwrap();
    assert_eq!(journal.meshed_pods().into_keys().collect::<Vec<_>>(), ["u1".into()]);
    drop(journal);
    rig.time.step_wall(-year - 200);
    let journal = rig.open();
    assert!(journal.by_serial("aa").is_some() && journal.by_serial("bb").is_none());
}

#[tokio::test]
async fn the_newest_is_the_last_that_was_made_also_after_the_clock_was_set_back() {
    let rig = rig();
    let journal = rig.open();
    journal.record(rig.issuance("u1", "aa", 100)).await.unwrap();
    rig.time.step_wall(-50);
    journal.record(rig.issuance("u1", "bb", 100)).await.unwrap();
    assert_eq!(journal.newest(&Holder::Pod("u1".into())).unwrap().serial, "bb");
}

#[tokio::test]
async fn only_a_pod_that_was_not_meshed_before_counts_as_a_change() {
    let rig = rig();
    let journal = rig.open();
    let mut changed = journal.meshed_changed();
    journal.record(rig.issuance("u1", "aa", 100)).await.unwrap();
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    journal.record(rig.issuance("u1", "bb", 200)).await.unwrap();
    assert!(!changed.has_changed().unwrap(), "a renewal changes nothing for others");
    rig.time.advance(Duration::from_secs(300));
    journal.record(rig.issuance("u1", "cc", 100)).await.unwrap();
    assert!(changed.has_changed().unwrap());
}

#[test]
fn a_damaged_journal_is_refused_with_its_place() {
    let rig = rig();
    std::fs::write(&rig.path, vec![7_u8; 8192]).unwrap();
    let refused = Journal::open(&rig.path, rig.clock.clone()).unwrap_err().to_string();
    assert!(refused.contains("journal.redb"), "{refused}");
}
