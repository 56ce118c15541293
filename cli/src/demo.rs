use crate::args::{DemoArgs, MeshArgs};
use crate::failure::{Exit, Failure};
pub(crate) fn run(_: &MeshArgs, _: DemoArgs) -> Result<Exit, Failure> { Ok(Exit::Success) }
