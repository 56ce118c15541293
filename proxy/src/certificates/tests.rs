#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Mutex as StdMutex;

use byrnie_identity::ManualClock;

use super::certify::{CertifyError, Credential, Issued};
use super::maintain::Keeper;
use super::*;
use crate::shared::Shared;
use crate::test_support::{TestMesh, id, trust_domain};

const HOUR: Duration = Duration::from_secs(3600);

/// A proxy whose certificates are kept by a [`Keeper`] that asks a control plane made of this struct.
struct Kept {
    mesh: Arc<TestMesh>,
    hand: ManualClock,
    shared: Arc<Shared>,
    asked: Arc<StdMutex<Vec<&'static str>>>,
    failing: watch::Sender<bool>,
}

impl Kept {
    /// Holds an SVID of one hour; a join token is there or not.
    fn start(has_token: bool) -> Self {
        let (clock, hand) = Clock::manual(SystemTime::now());
        let mesh = Arc::new(TestMesh::with_clock(clock));
        let shared = mesh.proxy("web");
        let asked: Arc<StdMutex<Vec<&'static str>>> = Arc::default();
        let failing = watch::Sender::new(false);
        let (seen, fails, issuer) = (Arc::clone(&asked), failing.clone(), Arc::clone(&mesh));
        let keeper = Keeper::new(shared.certificates.clone(), move || has_token);
        tokio::spawn(keeper.run(move |credential| {
            seen.lock().unwrap().push(match credential {
                Credential::Token => "token",
                Credential::Svid(_) => "svid",
            });
            let result = if *fails.borrow() {
                Err(CertifyError::TimedOut)
            } else {
                Ok(Issued { svid: issuer.svid("web", HOUR), bundle: Some(issuer.authority.bundle()) })
            };
            std::future::ready(result)
        }));
        Self { mesh, hand, shared, asked, failing }
    }

    /// Time goes by for the clock and for the timers, second by second.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            self.hand.advance(Duration::from_secs(1));
            self.look(1).await;
        }
    }

    /// Only timers run: the machine's clocks are moved by the test.
    async fn look(&self, seconds: u64) {
        for _ in 0..seconds {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().clone()
    }

    fn number(&self) -> u64 {
        self.shared.certificates.current().unwrap().number
    }
}

#[tokio::test(start_paused = true)]
async fn an_svid_is_renewed_at_half_of_its_life() {
    let kept = Kept::start(false);
    kept.hand.advance(Duration::from_secs(1600));
    kept.look(30).await;
    assert!(kept.asked().is_empty());
    kept.hand.advance(Duration::from_secs(400));
    kept.look(30).await;
    assert_eq!(kept.asked(), ["svid"]);
    assert_eq!(kept.number(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_renews_as_soon_as_it_wakes() {
    let kept = Kept::start(false);
    kept.look(10).await;
    kept.hand.suspend(Duration::from_secs(2100));
    kept.look(10).await;
    assert_eq!(kept.asked(), ["svid"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_makes_a_renewal_due() {
    let kept = Kept::start(false);
    kept.look(10).await;
    kept.hand.step_wall(2100);
    kept.look(10).await;
    assert_eq!(kept.asked(), ["svid"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_before_the_svid_began_fails_closed() {
    let kept = Kept::start(false);
    kept.failing.send_replace(true);
    kept.look(10).await;
    kept.hand.step_wall(-3600);
    assert!(kept.shared.certificates.current().is_none());
    kept.look(10).await;
    assert!(!kept.asked().is_empty());
    kept.hand.step_wall(3600);
    assert!(kept.shared.certificates.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_keeps_the_good_svid_and_waits_longer_each_time() {
    let kept = Kept::start(false);
    kept.failing.send_replace(true);
    let serial = kept.shared.certificates.current().unwrap().svid.serial().to_owned();
    kept.hand.advance(Duration::from_secs(2000));
    kept.pass(60).await;
    let early = kept.asked().len();
    assert!((4..=12).contains(&early), "{early} attempts in the first minute");
    kept.pass(240).await;
    let late = kept.asked().len() - early;
    assert!(late <= 4, "{late} attempts in the four minutes after it");
    assert_eq!(kept.shared.certificates.current().unwrap().svid.serial(), serial);
    kept.failing.send_replace(false);
    kept.pass(200).await;
    assert_eq!(kept.number(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_svid_is_not_handed_out_and_everyone_is_told() {
    let kept = Kept::start(false);
    kept.failing.send_replace(true);
    kept.look(10).await;
    let mut changed = kept.shared.certificates.changed();
    kept.hand.advance(HOUR + Duration::from_secs(1));
    assert!(kept.shared.certificates.current().is_none());
    assert!(kept.shared.certificates.held().is_some());
    tokio::time::timeout(Duration::from_secs(30), changed.changed()).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_svid_is_replaced_with_a_token_where_there_is_one() {
    let kept = Kept::start(true);
    kept.hand.suspend(2 * HOUR);
    kept.look(10).await;
    assert_eq!(kept.asked(), ["token"]);
    assert_eq!(kept.number(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_asked_for_happens_at_once_and_says_how_it_went() {
    let kept = Kept::start(false);
    kept.look(1).await;
    assert_eq!(kept.shared.certificates.renew_and_wait().await, Ok(2));
    kept.failing.send_replace(true);
    let reason = kept.shared.certificates.renew_and_wait().await.unwrap_err();
    assert!(reason.contains("did not answer"), "{reason}");
    assert_eq!(kept.number(), 2);
    // What was asked for is not forgotten because the first attempt failed.
    kept.failing.send_replace(false);
    kept.pass(10).await;
    assert_eq!(kept.number(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_is_taken_and_kept_also_when_the_own_svid_has_expired() {
    let kept = Kept::start(false);
    kept.hand.advance(2 * HOUR);
    assert!(kept.shared.certificates.current().is_none());
    let other = TestMesh::with_clock(kept.mesh.clock.clone());
    let bundle = TrustBundle::new(trust_domain(), 7, other.authority.bundle().roots().to_vec()).unwrap();
    kept.shared.certificates.take_bundle(bundle.clone());
    assert_eq!(kept.shared.certificates.bundle_revision(), 7);
    let state = &kept.shared.config.state;
    assert_eq!(super::state::load_bundle(state, &trust_domain()).unwrap(), Some(bundle));
    let again = Certificates::open(&kept.shared.config, kept.mesh.clock.clone()).unwrap();
    assert_eq!(again.bundle_revision(), 7);
}

#[test]
fn the_moment_of_renewal_is_half_of_what_is_left_give_or_take_a_tenth() {
    let mesh = TestMesh::new();
    let svid = mesh.svid("web", HOUR);
    let taken_at = svid.not_after() - HOUR;
    let after = |fraction| renew_at(&svid, taken_at, fraction).duration_since(taken_at).unwrap().as_secs();
    assert_eq!((after(0.0), after(0.5), after(1.0)), (1620, 1800, 1980));
    // A file's time that is no use: from the SVID's own beginning, never from before it.
    assert!(renew_at(&svid, SystemTime::UNIX_EPOCH, 0.0) > svid.not_before());
}

#[test]
fn a_short_svid_is_not_renewed_at_once_for_its_backdated_beginning() {
    let mesh = TestMesh::new();
    let svid = mesh.svid("web", Duration::from_secs(20));
    let now = mesh.clock.wall();
    assert!(renew_at(&svid, now, 0.0) > now + Duration::from_secs(7));
}

#[test]
fn an_svid_of_another_trust_domain_is_refused_at_start() {
    let mesh = TestMesh::new();
    let shared = Arc::try_unwrap(mesh.proxy("web")).ok().unwrap();
    let mut config = shared.config;
    config.trust_domain = "other.example".parse().unwrap();
    match Certificates::open(&config, mesh.clock.clone()) {
        Err(StateError::TrustDomain { found, .. }) => assert_eq!(found, id("web")),
        // The bundle itself names the trust domain in its roots, and may be what is noticed first.
        Err(StateError::Bundle { .. }) => {}
        _ => panic!("the SVID of another trust domain was taken"),
    }
}

#[test]
fn a_bundle_file_that_is_no_bundle_is_named() {
    let mesh = TestMesh::new();
    let shared = Arc::try_unwrap(mesh.proxy("web")).ok().unwrap();
    std::fs::write(&shared.config.trust_bundle, "not PEM").unwrap();
    let text = Certificates::open(&shared.config, mesh.clock.clone()).err().unwrap().to_string();
    assert!(text.contains("bundle.pem: expected the roots"), "{text}");
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let mesh = TestMesh::new();
    let shared = Arc::try_unwrap(mesh.proxy("web")).ok().unwrap();
    let key = shared.config.state.join("svid.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(Certificates::open(&shared.config, mesh.clock.clone()), Err(StateError::Svid(_))));
}
