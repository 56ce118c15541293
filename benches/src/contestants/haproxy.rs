//! HAProxy in TCP mode: it finds the original destination by itself, and the same configuration is right at both ends.

use byrnie_netlab::RunAs;

use super::{End, Running, write_for_proxy};
use crate::failure::Result;
use crate::tools::Tool;

const CONFIGURATION: &str = include_str!("../../configs/haproxy.cfg");

/// Starts one.
pub(super) fn start(end: &End) -> Result<Running> {
    let configuration = end.directory.join("haproxy.cfg");
    write_for_proxy(&configuration, CONFIGURATION)?;
    let command = end.host.command(Tool::Haproxy.find()?).user(RunAs::Proxy).args(["-db", "-f"]).arg(configuration);
    Running::start(&format!("haproxy of {}", end.name), command, &end.directory)
}
