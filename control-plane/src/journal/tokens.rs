//! Join tokens: how a proxy outside of Kubernetes proves, once, for which pod it speaks.
//!
//! A token is good for one key, not for one request: an answer can get lost after the token was used, and the proxy,
//! which keeps its key until it has a certificate, asks again. Whoever else finds the token has another key.

use std::{fmt, time::Duration};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use prost::Message;
use zeroize::Zeroizing;

use super::{
    Journal, JournalError,
    records::{TokenRecord, TokenState},
    store::{Table, Write},
    unix,
};
use crate::limits;

/// Begins every token, so that secret scanners and people know one when they see it.
const PREFIX: &str = "byrnie-join";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

/// For whom a token speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBinding {
    /// The pod's namespace.
    pub namespace: String,
    /// The service account that the pod must run as.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
}

/// A token that was just made; the only time that its text exists here.
pub struct NewToken {
    /// `byrnie-join.<id>.<secret>`.
    pub token: Zeroizing<String>,
    /// Names it for revocation; not secret.
    pub id: String,
    /// Unix seconds.
    pub expires: i64,
}

/// Why a token is worth nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this control plane.
    #[error(
        "join token unknown: it was not made by this control plane, or its file is damaged; make one with `byrnie token create`"
    )]
    Unknown,
    /// It was used for another key.
    #[error(
        "join token {id} already used: a token is good for one key, and this is another; make a new one with `byrnie token create`"
    )]
    Used {
        /// Which.
        id: String,
    },
    /// Its time is over.
    #[error("join token {id} expired at Unix time {expires}; make a new one with `byrnie token create`")]
    Expired {
        /// Which.
        id: String,
        /// When, Unix seconds.
        expires: i64,
    },
    /// It was taken back.
    #[error("join token {id} was revoked; make a new one with `byrnie token create`")]
    Revoked {
        /// Which.
        id: String,
    },
    /// The use could not be written down, so it does not count.
    #[error("the control plane can't write its journal: {0}")]
    Journal(String),
}

/// A token on record.
#[derive(Clone)]
pub(super) struct Token {
    hash: Vec<u8>,
    binding: TokenBinding,
    pub(super) expires: i64,
    state: TokenState,
    /// SHA-256 of the public key that it is used for; empty where there is none.
    key: Vec<u8>,
    /// Acceptances that were not given back: each may have made a certificate.
    acceptances: u64,
}

impl Journal {
    /// Makes a token; `ttl` of zero means the default.
    ///
    /// # Errors
    /// [`JournalError`]: too many tokens, or the disk.
    pub async fn create_token(&self, binding: TokenBinding, ttl: Duration) -> Result<NewToken, JournalError> {
        let ttl = if ttl.is_zero() { limits::TOKEN_TTL } else { ttl.min(limits::TOKEN_TTL_MAX) };
        let id = random_hex::<ID_BYTES>().to_string();
        let secret = random_hex::<SECRET_BYTES>();
        let expires = unix(self.clock.wall() + ttl);
        let state = TokenState::Unused;
        let hash = sha256(secret.as_bytes());
        let token = Token { hash, binding, expires, state, key: Vec::new(), acceptances: 0 };
        let written = {
            let mut ledger = self.lock();
            if ledger.tokens.len() >= limits::TOKENS {
                return Err(JournalError::TooManyTokens(ledger.tokens.len()));
            }
            let write = token.write(&id);
            ledger.tokens.insert(id.clone(), token);
            self.store.commit(vec![write])
        };
        written.await?;
        let token = Zeroizing::new(format!("{PREFIX}.{id}.{}", secret.as_str()));
        Ok(NewToken { token, id, expires })
    }

    /// For whom a token speaks, if it could be spent now for this key (SubjectPublicKeyInfo, DER).
    ///
    /// # Errors
    /// [`TokenError`]: it could not.
    pub fn check_token(&self, text: &str, public_key: &[u8]) -> Result<TokenBinding, TokenError> {
        let now = unix(self.clock.wall());
        let ledger = self.lock();
        let (id, secret) = parse(text).ok_or(TokenError::Unknown)?;
        let token = ledger.tokens.get(id).ok_or(TokenError::Unknown)?;
        token.usable(id, secret, &sha256(public_key), now)?;
        Ok(token.binding.clone())
    }

    /// Uses a token up for a key (SubjectPublicKeyInfo, DER) of which the caller has proved possession; again for the
    /// same key until it expires. Of two keys that try at once, one succeeds.
    ///
    /// # Errors
    /// [`TokenError`]: it is not usable, or its use could not be written down.
    pub async fn spend_token(&self, text: &str, public_key: &[u8]) -> Result<TokenBinding, TokenError> {
        let now = unix(self.clock.wall());
        let (id, secret) = parse(text).ok_or(TokenError::Unknown)?;
        let key = sha256(public_key);
        let (binding, written) = {
            let mut ledger = self.lock();
            let token = ledger.tokens.get_mut(id).ok_or(TokenError::Unknown)?;
            token.usable(id, secret, &key, now)?;
            token.state = TokenState::Used;
            token.key = key;
            token.acceptances = token.acceptances.saturating_add(1);
            // Also where it was used before: the write of the first use may be under way still, and fail.
            (token.binding.clone(), self.store.commit(vec![token.write(id)]))
        };
        if let Err(error) = written.await {
            // Nothing to wait for: what the disk says of it is at worst that it is used for this key.
            drop(self.take_back(id));
            return Err(TokenError::Journal(error.to_string()));
        }
        Ok(binding)
    }

    /// Gives a token back that was spent for nothing: the caller was handed no certificate. It stays with its key while
    /// another of its uses may have come to something.
    ///
    /// # Errors
    /// [`JournalError::Store`]: it is given back only until a restart.
    pub async fn give_back_token(&self, text: &str) -> Result<(), JournalError> {
        match parse(text).and_then(|(id, _)| self.take_back(id)) {
            Some(written) => written.await,
            None => Ok(()),
        }
    }

    /// Only of a token that was spent by whoever calls this; one that was revoked meanwhile stays so.
    fn take_back(&self, id: &str) -> Option<impl Future<Output = Result<(), JournalError>> + Send + use<>> {
        let mut ledger = self.lock();
        let token = ledger.tokens.get_mut(id).filter(|token| token.state == TokenState::Used)?;
        token.acceptances = token.acceptances.saturating_sub(1);
        if token.acceptances > 0 {
            return None;
        }
        token.state = TokenState::Unused;
        token.key.clear();
        Some(self.store.commit(vec![token.write(id)]))
    }

    /// Makes a token worthless; false where no such token is on record.
    ///
    /// # Errors
    /// [`JournalError::Store`]: revoked only until a restart.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, JournalError> {
        let written = {
            let mut ledger = self.lock();
            let Some(token) = ledger.tokens.get_mut(id) else {
                return Ok(false);
            };
            token.state = TokenState::Revoked;
            self.store.commit(vec![token.write(id)])
        };
        written.await?;
        Ok(true)
    }
}

impl Token {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = TokenRecord::decode(bytes).map_err(|error| error.to_string())?;
        let state = record.state();
        if state == TokenState::Unspecified {
            return Err("a token without a state".to_owned());
        }
        let binding =
            TokenBinding { namespace: record.namespace, service_account: record.service_account, pod: record.pod };
        // Who was handed what before the restart is not known: nothing takes this one back.
        let acceptances = u64::from(state == TokenState::Used);
        Ok(Self { hash: record.hash, binding, expires: record.expires, state, key: record.key, acceptances })
    }

    fn write(&self, id: &str) -> Write {
        let record = TokenRecord {
            hash: self.hash.clone(),
            namespace: self.binding.namespace.clone(),
            service_account: self.binding.service_account.clone(),
            pod: self.binding.pod.clone(),
            expires: self.expires,
            state: self.state.into(),
            key: self.key.clone(),
        };
        Write::put(Table::Tokens, id.to_owned(), record.encode_to_vec())
    }

    /// The secret is judged first: who does not hold it learns nothing of the token's state.
    fn usable(&self, id: &str, secret: &str, key: &[u8], now: i64) -> Result<(), TokenError> {
        verify_slices_are_equal(&self.hash, &sha256(secret.as_bytes())).map_err(|_| TokenError::Unknown)?;
        let id = id.to_owned();
        match self.state {
            TokenState::Used if self.key != key => Err(TokenError::Used { id }),
            TokenState::Revoked => Err(TokenError::Revoked { id }),
            TokenState::Unspecified => Err(TokenError::Unknown),
            TokenState::Unused | TokenState::Used if self.expires <= now => {
                Err(TokenError::Expired { id, expires: self.expires })
            }
            TokenState::Unused | TokenState::Used => Ok(()),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("binding", &self.binding).field("state", &self.state).finish_non_exhaustive()
    }
}

impl fmt::Debug for NewToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewToken").field("id", &self.id).field("expires", &self.expires).finish_non_exhaustive()
    }
}

fn parse(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.trim().strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?;
    (id.len() == 2 * ID_BYTES && secret.len() == 2 * SECRET_BYTES).then_some((id, secret))
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

fn random_hex<const BYTES: usize>() -> Zeroizing<String> {
    use fmt::Write as _;
    let mut bytes = Zeroizing::new([0_u8; BYTES]);
    // aws-lc's generator can't fail once the process has started; if it ever did, going on would make a guessable
    // token.
    #[allow(clippy::expect_used)]
    rand::fill(bytes.as_mut_slice()).expect("the system's random generator works");
    let mut text = Zeroizing::new(String::with_capacity(2 * BYTES));
    for byte in bytes.iter() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
