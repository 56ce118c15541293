//! `byrnie token …`

use byrnie_proto::mesh::v1::CreateTokenRequest;
use serde::Serialize;

use super::socket;
use crate::args::{MeshArgs, TokenCommand};
use crate::client::{Client, runtime};
use crate::failure::{Exit, Failure};
use crate::output::{Format, print_one};
use crate::view::rfc3339;

#[derive(Serialize)]
struct Token {
    id: String,
    token: String,
    expires: Option<String>,
}

pub(super) fn run(mesh: &MeshArgs, command: TokenCommand) -> Result<Exit, Failure> {
    let next = "byrnie namespace add NAMESPACE   (in a cluster a proxy proves its pod by a ServiceAccount token)";
    super::only_on_this_machine(mesh, "byrnie token", next)?;
    let socket = socket(mesh)?;
    runtime()?.block_on(async {
        match command {
            TokenCommand::Create { pod, namespace, pod_name, service_account, ttl, output } => {
                let pod = pod.or_else(|| Some(format!("{}/{}", namespace?, pod_name?))).unwrap_or_default();
                let request = request(&pod, service_account, ttl)?;
                let made = Client::connect(&socket).await?.create_token(request).await?;
                let token = Token { id: made.id, token: made.token, expires: rfc3339(made.expires) };
                print_one(&token, output, |token| match output {
                    Format::Wide => {
                        format!("{}\t{}\t{}\n", token.token, token.id, token.expires.as_deref().unwrap_or("-"))
                    }
                    _ => format!("{}\n", token.token),
                })?;
            }
            TokenCommand::Revoke { id } => Client::connect(&socket).await?.revoke_token(id).await?,
        }
        Ok(Exit::Success)
    })
}

fn request(pod: &str, service_account: Option<String>, ttl_seconds: u32) -> Result<CreateTokenRequest, Failure> {
    let Some((namespace, name)) = split_workload(pod) else {
        return Err(Failure::new(Exit::Usage, "that names no pod")
            .expected("NAMESPACE/POD, such as shop/web")
            .found(format!("{pod:?}"))
            .next("byrnie token create shop/web"));
    };
    Ok(CreateTokenRequest {
        namespace: namespace.to_owned(),
        service_account: service_account.unwrap_or_else(|| name.to_owned()),
        pod: name.to_owned(),
        ttl_seconds,
    })
}

fn split_workload(text: &str) -> Option<(&str, &str)> {
    text.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_service_account_is_the_pods_name_unless_told() {
        let request = request("shop/web", None, 60).unwrap();
        assert_eq!((request.namespace.as_str(), request.pod.as_str()), ("shop", "web"));
        assert_eq!((request.service_account.as_str(), request.ttl_seconds), ("web", 60));
    }

    #[test]
    fn a_pod_without_a_namespace_is_a_usage_error() {
        for wrong in ["web", "/web", "shop/", "a/b/c"] {
            assert_eq!(request(wrong, None, 60).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
