//! `byrnie check`

mod cluster;

use byrnie_proto::mesh::v1::{ObserveResponse, ObservedProxy};
use serde::Serialize;

use crate::args::{CheckArgs, MeshArgs};
use crate::cluster::Target;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Row, print_list};

pub(super) fn run(mesh: &MeshArgs, options: &CheckArgs) -> Result<Exit, Failure> {
    if Target::of(mesh)? == Target::Cluster {
        return cluster::run(mesh, options);
    }
    let found = findings(&super::observe(mesh)?);
    print_list(&found, options.output, "Every object is in force, and every proxy is connected and ready.")?;
    Ok(if found.is_empty() { Exit::Success } else { Exit::Negative })
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// An object (`Kind namespace/name`) or a proxy (`Proxy namespace/name`).
    about: String,
    /// Where an object stands, relative to the source; null for a proxy.
    file: Option<String>,
    /// Place, what was expected, what was found.
    problem: String,
}

impl Row for Finding {
    const HEADINGS: &'static [&'static str] = &["ABOUT", "FILE", "PROBLEM"];
    const WIDE_HEADINGS: &'static [&'static str] = &[];
    fn cells(&self) -> Vec<Cell> {
        vec![self.about.as_str().into(), Cell::optional(self.file.as_deref()), self.problem.as_str().into()]
    }
    fn wide_cells(&self) -> Vec<Cell> {
        Vec::new()
    }
}

fn findings(observed: &ObserveResponse) -> Vec<Finding> {
    let objects = observed.objects.iter().filter(|object| !object.message.is_empty()).map(|object| Finding {
        about: if object.object.is_empty() { "(unreadable)".into() } else { object.object.clone() },
        file: Some(object.file.clone()).filter(|file| !file.is_empty()),
        problem: object.message.clone(),
    });
    let proxies = observed.proxies.iter().flat_map(|proxy| {
        let about = format!("Proxy {}", proxy.workload);
        problems(proxy).into_iter().map(move |problem| Finding { about: about.clone(), file: None, problem })
    });
    objects.chain(proxies).collect()
}

fn problems(proxy: &ObservedProxy) -> Vec<String> {
    // That it drains, or has gone, is as it should be.
    if proxy.terminating {
        return Vec::new();
    }
    let mut problems = Vec::new();
    match &proxy.status {
        _ if !proxy.connected => problems.push("has an identity, and is not connected to the control plane".into()),
        Some(status) if !status.ready => problems.push(format!("not ready: {}", status.not_ready_reason)),
        _ => {}
    }
    problems.extend(proxy.nacks.iter().map(|nack| format!("could not take {nack}")));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use byrnie_proto::mesh::v1::{ObjectStatus, ProxyStatus};

    fn proxy(connected: bool, ready: bool) -> ObservedProxy {
        let status = ProxyStatus { ready, not_ready_reason: "no capture".into(), ..Default::default() };
        ObservedProxy { workload: "shop/web".into(), connected, status: Some(status), ..Default::default() }
    }

    #[test]
    fn a_mesh_that_is_well_has_no_findings() {
        let object = ObjectStatus { object: "Pod shop/web".into(), accepted: true, ..Default::default() };
        let observed =
            ObserveResponse { objects: vec![object], proxies: vec![proxy(true, true)], ..Default::default() };
        assert!(findings(&observed).is_empty());
    }

    #[test]
    fn a_refused_object_is_named_with_its_file_and_place() {
        let object = ObjectStatus {
            object: "MtlsPolicy shop/x".into(),
            file: "shop.yaml".into(),
            accepted: false,
            message: "line 4: spec.mode: expected Strict or Permissive, found Off".into(),
        };
        let found = findings(&ObserveResponse { objects: vec![object], ..Default::default() });
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((finding.about.as_str(), finding.file.as_deref()), ("MtlsPolicy shop/x", Some("shop.yaml")));
        assert!(finding.problem.contains("line 4"));
    }

    #[test]
    fn the_proxy_of_a_pod_that_is_being_deleted_may_drain_and_go() {
        let proxies = [proxy(true, false), proxy(false, false)].map(|proxy| ObservedProxy {
            terminating: true,
            nacks: vec!["self: port 0".into()],
            ..proxy
        });
        assert!(findings(&ObserveResponse { proxies: proxies.into(), ..Default::default() }).is_empty());
    }

    #[test]
    fn a_proxy_that_is_away_not_ready_or_refuses_a_resource_is_named() {
        let refusing = ObservedProxy { nacks: vec!["self: port 0".into()], ..proxy(true, true) };
        let proxies = vec![proxy(false, true), proxy(true, false), refusing];
        let found = findings(&ObserveResponse { proxies, ..Default::default() });
        let problems: Vec<&str> = found.iter().map(|finding| finding.problem.as_str()).collect();
        assert_eq!(
            problems,
            [
                "has an identity, and is not connected to the control plane",
                "not ready: no capture",
                "could not take self: port 0"
            ]
        );
    }
}
