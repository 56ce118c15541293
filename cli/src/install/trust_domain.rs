//! The trust domain of a new mesh. It stands in every identity, so it is fixed before the control plane starts for the
//! first time: by a MeshConfig that is there before its Deployment is.

use byrnie_api::{DEFAULT_TRUST_DOMAIN, MESH_CONFIG_NAME, MeshConfig, MeshConfigSpec};
use byrnie_identity::TrustDomain;
use kube::api::{Api, PostParams};
use tokio::time::Instant;

use super::{Manifest, apply::PAUSE};
use crate::cluster::{Cluster, code, printable};
use crate::failure::{Exit, Failure};

/// The MeshConfig that says it. It has no label of the installation: from then on it is its owner's, and stays with the
/// policies when the installation goes.
pub fn mesh_config(trust_domain: &TrustDomain) -> Manifest {
    Manifest::of(&object(trust_domain))
}

fn object(trust_domain: &TrustDomain) -> MeshConfig {
    let spec = MeshConfigSpec { trust_domain: Some(trust_domain.to_string()), ..MeshConfigSpec::default() };
    MeshConfig::new(MESH_CONFIG_NAME, spec)
}

/// Whether a MeshConfig must be made for the mesh to have this trust domain; asked before anything is changed.
/// `installed`: the control plane's Deployment is there.
///
/// # Errors
/// The mesh has another already, or the API server does not answer or refuses.
pub(super) async fn is_to_be_made(cluster: &Cluster, wanted: &TrustDomain, installed: bool) -> Result<bool, Failure> {
    let api: Api<MeshConfig> = Api::all(cluster.client());
    let asked = async {
        match api.get(MESH_CONFIG_NAME).await {
            // Nor is there the kind, before the first installation.
            Err(error) if code(&error) == Some(404) => Ok(None),
            other => other.map(Some),
        }
    };
    let found = cluster.call("read MeshConfig default", asked).await?;
    decide(wanted, found.as_ref().map(|config| &config.spec), installed)
}

fn decide(wanted: &TrustDomain, found: Option<&MeshConfigSpec>, installed: bool) -> Result<bool, Failure> {
    if found.is_none() && !installed {
        return Ok(true);
    }
    let has = found.and_then(|spec| spec.trust_domain.as_deref()).unwrap_or(DEFAULT_TRUST_DOMAIN);
    if has == wanted.as_str() {
        return Ok(false);
    }
    let failure = Failure::new(Exit::Refused, format!("the trust domain can't become {wanted}"))
        .expected("a mesh without one, or of this one: it stands in every identity");
    Err(if installed {
        failure
            .found(format!("a mesh of {}", printable(has)))
            .next("leave --trust-domain out; for another one: byrnie uninstall, and install anew")
    } else {
        failure.found(format!("MeshConfig {MESH_CONFIG_NAME} says {}", printable(has))).next(format!(
            "kubectl edit meshconfig {MESH_CONFIG_NAME}   (no mesh runs yet), or leave --trust-domain out"
        ))
    })
}

/// Makes it. The API server takes a moment to serve a kind that was just defined.
pub(super) async fn make(cluster: &Cluster, trust_domain: &TrustDomain, deadline: Instant) -> Result<(), Failure> {
    let api: Api<MeshConfig> = Api::all(cluster.client());
    let (params, config) = (PostParams::default(), object(trust_domain));
    let what = format!("create MeshConfig {MESH_CONFIG_NAME}");
    loop {
        let call = async {
            match api.create(&params, &config).await {
                Err(error) if code(&error) == Some(404) && Instant::now() < deadline => Ok(false),
                other => other.map(|_| true),
            }
        };
        if cluster.call(&what, call).await? {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn says(trust_domain: Option<&str>) -> MeshConfigSpec {
        MeshConfigSpec { trust_domain: trust_domain.map(str::to_owned), ..MeshConfigSpec::default() }
    }

    #[test]
    fn a_trust_domain_is_chosen_once_and_never_changed_by_installing() {
        let wanted: TrustDomain = "mesh.example".parse().unwrap();
        assert!(decide(&wanted, None, false).unwrap());
        for installed in [false, true] {
            assert!(!decide(&wanted, Some(&says(Some("mesh.example"))), installed).unwrap());
            for other in [says(None), says(Some("other.example\u{1b}"))] {
                let refused = decide(&wanted, Some(&other), installed).unwrap_err();
                assert_eq!(refused.exit, Exit::Refused);
                assert!(!refused.found.unwrap().contains('\u{1b}'));
            }
        }
        assert!(decide(&wanted, None, true).unwrap_err().found.unwrap().contains("cluster.local"));
        assert!(!decide(&"cluster.local".parse().unwrap(), None, true).unwrap());
    }

    #[test]
    fn the_mesh_config_that_is_made_is_one_that_the_mesh_takes() {
        let made = serde_json::to_value(mesh_config(&"mesh.example".parse().unwrap()).object).unwrap();
        let byrnie_api::Object::MeshConfig(config) = byrnie_api::parse(made).unwrap() else {
            panic!("a MeshConfig");
        };
        assert_eq!(config.spec.settings().unwrap().trust_domain.as_str(), "mesh.example");
    }
}
