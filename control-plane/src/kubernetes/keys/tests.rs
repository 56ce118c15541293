use std::time::SystemTime;

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{KeyPair, RSA_PKCS1_SHA256},
};
use serde_json::json;

use super::{
    super::testing::{Answer, ISSUER, Signer, base64, fake},
    *,
};

fn keys(of: &[Value]) -> Keys {
    let keys = Keys::new(Clock::system());
    keys.know(ISSUER, of);
    keys
}

fn refused(keys: &Keys, token: &str) -> String {
    keys.verify(token).unwrap_err().to_string()
}

/// Signed as it should be, with these claims over the usual ones.
fn with(signer: &Signer, over: Value) -> String {
    let mut claims = Signer::claims("web-0", "web");
    for (name, value) in over.as_object().unwrap() {
        claims[name] = value.clone();
    }
    signer.sign(&json!({"alg": "ES256", "kid": signer.id}), &claims)
}

#[test]
fn a_token_of_the_api_servers_making_says_which_pod_it_is_bound_to() {
    let signer = Signer::new("one");
    let keys = keys(&[Signer::new("other").jwk(), signer.jwk()]);
    let claims = keys.verify(&signer.token("web-0", "web")).unwrap();
    assert_eq!((claims.namespace.as_str(), claims.service_account.as_str()), ("shop", "web"));
    assert_eq!((claims.pod.as_str(), &*claims.uid), ("web-0", "uid-web-0"));
    // One of several audiences will do, and an array of them is what the API server writes.
    keys.verify(&with(&signer, json!({"aud": ["other", "byrnie.dev/ca"]}))).unwrap();
}

#[test]
fn a_key_of_rsa_signs_by_its_one_algorithm() {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let public = pair.public_key();
    let jwk = json!({"use": "sig", "kty": "RSA", "kid": "rsa", "alg": "RS256",
        "n": base64(public.modulus().big_endian_without_leading_zero()),
        "e": base64(public.exponent().big_endian_without_leading_zero())});
    let sign = |algorithm: &str| {
        let (header, claims) = (json!({"alg": algorithm, "kid": "rsa"}), Signer::claims("web-0", "web"));
        let signed = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
        let mut signature = vec![0; pair.public_modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", base64(signature))
    };
    let keys = keys(&[jwk]);
    keys.verify(&sign("RS256")).unwrap();
    for other in ["RS512", "PS256", "ES256", "HS256"] {
        assert_eq!(refused(&keys, &sign(other)), "InvalidAlgorithm", "{other}");
    }
}

#[test]
fn what_another_key_has_signed_is_refused_whatever_name_it_gives_the_key() {
    let (good, evil) = (Signer::new("one"), Signer::new("one"));
    let keys = keys(&[good.jwk()]);
    assert_eq!(refused(&keys, &evil.token("web-0", "web")), "InvalidSignature");
    for id in [json!("another"), json!(null), json!("")] {
        let token = good.sign(&json!({"alg": "ES256", "kid": id}), &Signer::claims("web-0", "web"));
        assert!(matches!(keys.verify(&token), Err(Unverified::UnknownKey)), "{id}");
    }
    // The token's own word for where its key is to be had.
    let claims = Signer::claims("web-0", "web");
    let header = json!({"alg": "ES256", "kid": "one", "jwk": evil.jwk(), "jku": "https://evil.example"});
    assert_eq!(refused(&keys, &evil.sign(&header, &claims)), "InvalidSignature");
}

#[test]
fn no_signature_and_a_public_key_as_the_secret_are_refused() {
    let signer = Signer::new("one");
    let keys = keys(&[signer.jwk()]);
    let claims = base64(Signer::claims("web-0", "web").to_string());
    for algorithm in ["none", "None", ""] {
        let header = base64(json!({"alg": algorithm, "kid": "one"}).to_string());
        for signature in ["", "AA"] {
            keys.verify(&format!("{header}.{claims}.{signature}")).unwrap_err();
        }
    }
    for secret in [signer.public(), signer.jwk().to_string().into_bytes(), Vec::new()] {
        let signed = format!("{}.{claims}", base64(json!({"alg": "HS256", "kid": "one"}).to_string()));
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        assert_eq!(refused(&keys, &format!("{signed}.{}", base64(tag))), "InvalidAlgorithm");
    }
    // A document that lists a secret lists no key.
    let symmetric = json!({"kty": "oct", "kid": "secret", "alg": "HS256", "k": base64("secret")});
    assert!(Key::read(&symmetric).is_none());
    let other_use =
        |jwk: Value| json!({"use": "enc", "kty": "EC", "kid": "x", "crv": "P-256", "x": jwk["x"], "y": jwk["y"]});
    assert!(Key::read(&other_use(signer.jwk())).is_none());
}

#[test]
fn every_claim_is_looked_at() {
    let signer = Signer::new("one");
    let keys = keys(&[signer.jwk()]);
    let now = unix(SystemTime::now());
    let pod = |pod: Value| json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "u"}, "pod": pod}});
    for over in [
        json!({"aud": ["https://kubernetes.default.svc"]}),
        json!({"aud": "byrnie.dev/ca.evil.example"}),
        json!({"aud": []}),
        json!({"aud": null}),
        json!({"iss": "https://evil.example"}),
        json!({"iss": null}),
        json!({"exp": now}),
        json!({"exp": now - 3600}),
        json!({"exp": null}),
        json!({"exp": "never"}),
        json!({"nbf": now + 3600}),
        json!({"nbf": null}),
        json!({"sub": "system:serviceaccount:shop:db"}),
        json!({"sub": "administrator"}),
        json!({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "u"}}}),
        json!({"kubernetes.io": null}),
        pod(json!({"name": "web-0"})),
        pod(json!({"name": "web-0", "uid": ""})),
        pod(json!({"name": "../db-0", "uid": "uid-db-0"})),
    ] {
        assert!(keys.verify(&with(&signer, over.clone())).is_err(), "{over}");
    }
    for text in ["", ".", "..", "a.b.c", "é.é.é", "e30.e30.e30"] {
        assert!(keys.verify(text).is_err(), "{text}");
    }
}

#[test]
fn keys_that_could_not_be_read_for_a_day_count_no_more() {
    let (clock, time) = Clock::manual(SystemTime::now());
    let (keys, signer) = (Keys::new(clock), Signer::new("one"));
    let token = with(&signer, json!({"exp": unix(SystemTime::now()) + 1_000_000}));
    assert!(matches!(keys.verify(&token), Err(Unverified::NoKeys)));
    keys.know(ISSUER, &[signer.jwk()]);
    keys.verify(&token).unwrap();
    time.advance(limits::KEYS_HELD + Duration::from_secs(1));
    assert!(matches!(keys.verify(&token), Err(Unverified::NoKeys)));
}

#[tokio::test(start_paused = true)]
async fn keys_that_change_are_read_again_and_a_server_that_is_away_leaves_those_that_were_read() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let mut asked = 0;
    let sets = [json!({"keys": [old.jwk()]}), json!({"keys": [new.jwk(), {"kty": "unheard of"}]})];
    let (client, _) = fake(move |request| match request.path.as_str() {
        DISCOVERY => Answer::json(200, &json!({"issuer": ISSUER})),
        _ => {
            asked += 1;
            sets.get(asked - 1).map_or_else(|| Answer::status(503, "away"), |set| Answer::json(200, set))
        }
    });
    let keys = Arc::new(Keys::new(Clock::system()));
    let keeping = tokio::spawn(keys.clone().keep(client));
    tokio::time::sleep(Duration::from_secs(1)).await;
    keys.verify(&old.token("web-0", "web")).unwrap();
    for _ in 0..3 {
        tokio::time::sleep(limits::KEYS_READ).await;
        keys.verify(&new.token("web-0", "web")).unwrap();
        assert!(matches!(keys.verify(&old.token("web-0", "web")), Err(Unverified::UnknownKey)));
    }
    keeping.abort();
}
