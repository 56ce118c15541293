//! The iptables back end: `iptables-restore` and `ip6tables-restore`, in one of
//! their two variants, for machines whose kernel lacks nf_tables or whose
//! operators want to see the rules where they see all others.

mod program;
mod saved;
mod text;

use nix::errno::Errno;

use crate::nftables::{flush_conntrack, has_chain, in_this_namespace};
use crate::state::CaptureState;
use crate::{Applied, BackEnd, Capture, CaptureConfig, CaptureError, Families, Removed, RuleSet};
use program::Programs;
pub use program::{ENVIRONMENT, SEARCHED};
use saved::Saved;

/// Which of the two implementations of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Its rules are carried out by nf_tables.
    Nft,
    /// It has tables of its own (`CONFIG_IP_NF_IPTABLES_LEGACY`).
    Legacy,
}

impl Variant {
    fn back_end(self) -> BackEnd {
        match self {
            Self::Nft => BackEnd::IptablesNft,
            Self::Legacy => BackEnd::IptablesLegacy,
        }
    }
}

/// Capture by iptables 1.8 or newer: chains `BYRNIE-OUTPUT` and
/// `BYRNIE-PREROUTING` of table `nat` and `BYRNIE-TRACKING` of table `raw`,
/// for each address family, which are asked first in `OUTPUT` and
/// `PREROUTING`. One table of one family changes at once, as a whole; where a
/// later one fails, the earlier ones get back what they had.
#[derive(Debug)]
pub struct IpTables {
    variant: Variant,
    v4: Programs,
    v6: Programs,
}

impl IpTables {
    /// The programs of a variant, out of [`SEARCHED`].
    ///
    /// # Errors
    /// [`CaptureError::NoPrograms`] with those that are missing.
    pub fn find(variant: Variant) -> Result<Self, CaptureError> {
        Self::find_in(variant, SEARCHED)
    }

    /// The same out of other directories, separated by colons.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub fn find_in(variant: Variant, directories: &str) -> Result<Self, CaptureError> {
        let find = |families| Programs::find(families, variant, directories);
        let (v4, v6) = (find(Families::V4)?, find(Families::V6)?);
        Ok(Self { variant, v4, v6 })
    }

    fn each(&self) -> [&Programs; 2] {
        [&self.v4, &self.v6]
    }

    /// What each family has, as its program saves it.
    fn save(&self, tried: &'static str) -> Result<[Saved; 2], CaptureError> {
        if has_anything(self.variant, tried)? == Some(false) {
            return Ok([Saved::default(), Saved::default()]);
        }
        let read = |programs: &Programs| -> Result<Saved, CaptureError> {
            let mut saved = Saved::default();
            for table in text::TABLES {
                saved.read(table, &programs.save(table, tried)?);
            }
            Ok(saved)
        };
        Ok([read(&self.v4)?, read(&self.v6)?])
    }

    fn state(&self, saved: &[Saved; 2]) -> CaptureState {
        let back_end = self.variant.back_end();
        if saved.iter().all(Saved::is_empty) {
            return CaptureState::absent(back_end);
        }
        let (mut chain_problems, mut rules) = (Vec::new(), Vec::new());
        for (programs, saved) in self.each().into_iter().zip(saved) {
            chain_problems.extend(saved.problems().into_iter().map(|text| format!("{text} ({})", programs.families())));
            rules.extend(saved.rules(programs.families()));
        }
        CaptureState { back_end, present: true, chain_problems, rules }
    }

    /// Gives every family back what it had; says what did not work.
    fn roll_back(&self, before: &[Saved; 2], tried: &'static str) -> Result<(), CaptureError> {
        let now = self.save(tried)?;
        let mut first_error = None;
        for ((programs, before), now) in self.each().into_iter().zip(before).zip(&now) {
            let text = text::back_to(before, now);
            if let Err(error) = programs.restore(&text, tried) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl Capture for IpTables {
    fn apply(&self, config: &CaptureConfig) -> Result<Applied, CaptureError> {
        let tried = "apply the capture rules";
        let wanted = RuleSet::of(config)?;
        let before = self.save(tried)?;
        if self.state(&before).differences(&wanted).is_empty() {
            return Ok(Applied::Unchanged);
        }
        for (programs, saved) in self.each().into_iter().zip(&before) {
            let text = text::of(&wanted, self.variant.back_end(), programs.families(), saved);
            if let Err(error) = programs.restore(&text, tried) {
                return Err(match self.roll_back(&before, tried) {
                    Ok(()) => error,
                    Err(also) => CaptureError::HalfApplied { error: Box::new(error), also: Box::new(also) },
                });
            }
        }
        // The programs translate the text; what counts is what the kernel has.
        self.verify(config)?;
        in_this_namespace(tried, |_| async {
            flush_conntrack().await.map_err(|error| CaptureError::not_flushed(&error))
        })?;
        Ok(Applied::Changed)
    }

    fn remove(&self) -> Result<Removed, CaptureError> {
        let tried = "remove the capture rules";
        let saved = self.save(tried)?;
        if saved.iter().all(Saved::is_empty) {
            return Ok(Removed::NothingThere);
        }
        for (programs, saved) in self.each().into_iter().zip(&saved) {
            programs.restore(&text::without(saved), tried)?;
        }
        Ok(Removed::Removed)
    }

    fn show(&self) -> Result<CaptureState, CaptureError> {
        Ok(self.state(&self.save("read the capture rules")?))
    }
}

/// Whether there can be anything of ours, asked of the kernel: that works where
/// the programs are missing, makes no tables, and does not fail because of what
/// others have in tables that iptables can't read. `None`: the kernel does not
/// tell.
pub(crate) fn has_anything(variant: Variant, tried: &'static str) -> Result<Option<bool>, CaptureError> {
    match variant {
        Variant::Nft => has_chain(text::PREFIX, tried).map(Some),
        Variant::Legacy => Ok(program::has_legacy_tables()),
    }
}

/// Whether a program's complaint is that it may not.
fn is_permission(complaint: &str) -> bool {
    [Errno::EPERM, Errno::EACCES].iter().any(|errno| complaint.contains(errno.desc()))
}
