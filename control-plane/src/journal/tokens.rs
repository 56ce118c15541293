//! Join tokens: how a proxy outside of Kubernetes proves, once, for which pod it speaks.

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
    /// Somebody has used it.
    #[error("join token {id} already used: a token is good once; make a new one with `byrnie token create`")]
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
        let token = Token { hash: hash(&secret), binding, expires, state: TokenState::Unused };
        let write = Write::put(Table::Tokens, id.clone(), token.encode());
        {
            let mut ledger = self.lock();
            if ledger.tokens.len() >= limits::TOKENS {
                return Err(JournalError::TooManyTokens(ledger.tokens.len()));
            }
            ledger.tokens.insert(id.clone(), token);
        }
        self.store.commit(vec![write]).await?;
        let token = Zeroizing::new(format!("{PREFIX}.{id}.{}", secret.as_str()));
        Ok(NewToken { token, id, expires })
    }

    /// For whom a token speaks, if it could be spent now.
    ///
    /// # Errors
    /// [`TokenError`]: it could not.
    pub fn check_token(&self, text: &str) -> Result<TokenBinding, TokenError> {
        let now = unix(self.clock.wall());
        let ledger = self.lock();
        let (id, secret) = parse(text).ok_or(TokenError::Unknown)?;
        ledger.tokens.get(id).ok_or(TokenError::Unknown)?.usable(id, secret, now)?;
        ledger.tokens.get(id).map(|token| token.binding.clone()).ok_or(TokenError::Unknown)
    }

    /// Uses a token up. Of two that try at once, one succeeds.
    ///
    /// # Errors
    /// [`TokenError`]: it is not usable, or its use could not be written down.
    pub async fn spend_token(&self, text: &str) -> Result<TokenBinding, TokenError> {
        let now = unix(self.clock.wall());
        let (id, secret) = parse(text).ok_or(TokenError::Unknown)?;
        let (binding, write) = {
            let mut ledger = self.lock();
            let token = ledger.tokens.get_mut(id).ok_or(TokenError::Unknown)?;
            token.usable(id, secret, now)?;
            token.state = TokenState::Used;
            (token.binding.clone(), Write::put(Table::Tokens, id.to_owned(), token.encode()))
        };
        if let Err(error) = self.store.commit(vec![write]).await {
            self.set_unused(id);
            return Err(TokenError::Journal(error.to_string()));
        }
        Ok(binding)
    }

    /// Gives a token back that was spent for nothing: the caller was handed no certificate.
    ///
    /// # Errors
    /// [`JournalError::Store`]: it is given back only until a restart.
    pub async fn give_back_token(&self, text: &str) -> Result<(), JournalError> {
        let Some(write) = parse(text).and_then(|(id, _)| self.set_unused(id)) else {
            return Ok(());
        };
        self.store.commit(vec![write]).await
    }

    /// Only of a token that was spent by whoever calls this; one that was revoked meanwhile stays so.
    fn set_unused(&self, id: &str) -> Option<Write> {
        let mut ledger = self.lock();
        let token = ledger.tokens.get_mut(id).filter(|token| token.state == TokenState::Used)?;
        token.state = TokenState::Unused;
        Some(Write::put(Table::Tokens, id.to_owned(), token.encode()))
    }

    /// Makes a token worthless; false where no such token is on record.
    ///
    /// # Errors
    /// [`JournalError::Store`]: revoked only until a restart.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, JournalError> {
        let write = {
            let mut ledger = self.lock();
            let Some(token) = ledger.tokens.get_mut(id) else {
                return Ok(false);
            };
            token.state = TokenState::Revoked;
            Write::put(Table::Tokens, id.to_owned(), token.encode())
        };
        self.store.commit(vec![write]).await?;
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
        Ok(Self { hash: record.hash, binding, expires: record.expires, state })
    }

    fn encode(&self) -> Vec<u8> {
        TokenRecord {
            hash: self.hash.clone(),
            namespace: self.binding.namespace.clone(),
            service_account: self.binding.service_account.clone(),
            pod: self.binding.pod.clone(),
            expires: self.expires,
            state: self.state.into(),
        }
        .encode_to_vec()
    }

    /// The secret is judged first: who does not hold it learns nothing of the token's state.
    fn usable(&self, id: &str, secret: &str, now: i64) -> Result<(), TokenError> {
        verify_slices_are_equal(&self.hash, &hash(secret)).map_err(|_| TokenError::Unknown)?;
        let id = id.to_owned();
        match self.state {
            TokenState::Used => Err(TokenError::Used { id }),
            TokenState::Revoked => Err(TokenError::Revoked { id }),
            TokenState::Unspecified => Err(TokenError::Unknown),
            TokenState::Unused if self.expires <= now => Err(TokenError::Expired { id, expires: self.expires }),
            TokenState::Unused => Ok(()),
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

fn hash(secret: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, secret.as_bytes()).as_ref().to_vec()
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
