//! What stands in the journal, in memory and as bytes.

use std::sync::Arc;

use byrnie_identity::SpiffeId;
use byrnie_proto::mesh::v1::IssuedIdentity;
use prost::Message;

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    /// The proxy of the pod with this UID.
    Pod(Arc<str>),
    /// A client outside of the mesh that has this SPIFFE ID's certificate in a file; it is no proxy.
    Ingress(SpiffeId),
    /// The control plane itself.
    ControlPlane,
}

/// One certificate that the CA made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuance {
    /// Who holds it.
    pub holder: Holder,
    /// `namespace/name` of the workload.
    pub workload: String,
    /// What it says.
    pub spiffe_id: SpiffeId,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// The issuer's name.
    pub issuer: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// X.509 DER, leaf first.
    pub chain: Vec<Vec<u8>>,
}

impl Issuance {
    /// As `Observe` shows it.
    pub fn observed(&self) -> IssuedIdentity {
        let pod_uid = match &self.holder {
            Holder::Pod(uid) => uid.to_string(),
            Holder::Ingress(_) | Holder::ControlPlane => String::new(),
        };
        IssuedIdentity {
            workload: self.workload.clone(),
            pod_uid,
            spiffe_id: self.spiffe_id.to_string(),
            serial: self.serial.clone(),
            issuer: self.issuer.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            chain: self.chain.clone(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let holder = match &self.holder {
            Holder::Pod(_) => HolderKind::Pod,
            Holder::Ingress(_) => HolderKind::Ingress,
            Holder::ControlPlane => HolderKind::ControlPlane,
        };
        IssuanceRecord { identity: Some(self.observed()), holder: holder.into() }.encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let record = IssuanceRecord::decode(bytes).map_err(|error| error.to_string())?;
        let kind = record.holder();
        let identity = record.identity.ok_or("an issuance without its identity")?;
        let spiffe_id: SpiffeId =
            identity.spiffe_id.parse().map_err(|error| format!("SPIFFE ID {:?}: {error}", identity.spiffe_id))?;
        let holder = match kind {
            HolderKind::Unspecified => return Err("an issuance without a holder".to_owned()),
            HolderKind::Pod => Holder::Pod(identity.pod_uid.into()),
            HolderKind::Ingress => Holder::Ingress(spiffe_id.clone()),
            HolderKind::ControlPlane => Holder::ControlPlane,
        };
        Ok(Self {
            holder,
            workload: identity.workload,
            spiffe_id,
            serial: identity.serial,
            issuer: identity.issuer,
            not_before: identity.not_before,
            not_after: identity.not_after,
            chain: identity.chain,
        })
    }
}

/// A join token on the disk; its secret is not there, only the secret's SHA-256.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct TokenRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) hash: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(string, tag = "3")]
    pub(super) service_account: String,
    #[prost(string, tag = "4")]
    pub(super) pod: String,
    #[prost(int64, tag = "5")]
    pub(super) expires: i64,
    #[prost(enumeration = "TokenState", tag = "6")]
    pub(super) state: i32,
    /// SHA-256 of the public key (SubjectPublicKeyInfo, DER) that it was used for; empty where it is unused, and in
    /// records from before this was kept.
    #[prost(bytes = "vec", tag = "7")]
    pub(super) key: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum TokenState {
    Unspecified = 0,
    Unused = 1,
    Used = 2,
    Revoked = 3,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct IssuanceRecord {
    #[prost(message, optional, tag = "1")]
    identity: Option<IssuedIdentity>,
    #[prost(enumeration = "HolderKind", tag = "2")]
    holder: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum HolderKind {
    Unspecified = 0,
    Pod = 1,
    Ingress = 2,
    ControlPlane = 3,
}
