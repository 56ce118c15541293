//! The promises, one function each. A check compares what was expected with what was measured; none of them asks the
//! mesh for its opinion where the other end, the wire or an attacker can be asked instead.

pub(super) mod attacks;
pub(super) mod egress;
pub(super) mod identities;
pub(super) mod outage;
pub(super) mod renewal;
pub(super) mod reuse;
pub(super) mod wire;

use super::directory::MeshDir;
use super::narrator::Narrator;
use super::report::{Check, Report};
use super::world::World;

/// What a check works with.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) world: &'a mut World,
    pub(super) dir: &'a MeshDir,
    pub(super) narrator: &'a Narrator,
    pub(super) report: &'a mut Report,
}

impl Scene<'_> {
    fn check(&mut self, name: &'static str, passed: bool, expected: &str, found: impl Into<String>) {
        let check = Check { name, passed, expected: expected.into(), found: found.into() };
        self.report.check(self.narrator, check);
    }
}
