//! Which back end has the rules, and which one gets them.

use std::fmt;

use clap::ValueEnum;

use crate::iptables::{IpTables, Variant, has_anything};
use crate::rules::Match;
use crate::{Applied, Capture, CaptureConfig, CaptureError, CaptureState, Families, NfTables, Removed, Rule};

/// Who has rules in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BackEnd {
    /// [`NfTables`]: table `inet byrnie`.
    NfTables,
    /// [`IpTables`] whose rules nf_tables carries out.
    IptablesNft,
    /// [`IpTables`] with tables of its own.
    IptablesLegacy,
}

impl BackEnd {
    /// All of them, in the order in which `auto` tries them.
    pub const ALL: [Self; 3] = [Self::NfTables, Self::IptablesNft, Self::IptablesLegacy];

    /// The sets of rules that it keeps.
    pub fn families(self) -> &'static [Families] {
        match self {
            Self::NfTables => &[Families::Both],
            Self::IptablesNft | Self::IptablesLegacy => &[Families::V4, Families::V6],
        }
    }

    /// Whether a rule is among those that it keeps for these families.
    pub(crate) fn takes(self, families: Families, rule: &Rule) -> bool {
        // iptables can't ask for a socket's priority.
        let sees = self == Self::NfTables || !rule.matches.iter().any(|found| matches!(found, Match::Priority(_)));
        sees && families.take(rule)
    }

    /// What there is of it on this machine.
    ///
    /// # Errors
    /// [`CaptureError::NoPrograms`].
    pub fn find(self) -> Result<Box<dyn Capture>, CaptureError> {
        Ok(match self {
            Self::NfTables => Box::new(NfTables),
            Self::IptablesNft => Box::new(IpTables::find(Variant::Nft)?),
            Self::IptablesLegacy => Box::new(IpTables::find(Variant::Legacy)?),
        })
    }
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NfTables => "nf_tables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

/// Which back end is to have the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Choice {
    /// nf_tables, or where the kernel lacks it, iptables.
    #[default]
    Auto,
    /// nf_tables over netlink; no program is needed.
    Nftables,
    /// The programs `iptables-nft-restore` or, where that does not work, `iptables-legacy-restore`, and their like.
    Iptables,
}

impl Choice {
    fn in_order(self) -> &'static [BackEnd] {
        match self {
            Self::Auto => &BackEnd::ALL,
            Self::Nftables => &[BackEnd::NfTables],
            Self::Iptables => &[BackEnd::IptablesNft, BackEnd::IptablesLegacy],
        }
    }
}

/// Applies with the first back end of the choice that works here, then takes
/// away what other back ends had: what one excludes, the other would capture.
/// At no moment is the namespace without rules.
///
/// # Errors
/// [`CaptureError::NoBackEnd`] when none works, with the reason of each; else
/// what the first that could work says.
pub fn apply(choice: Choice, config: &CaptureConfig) -> Result<(Applied, BackEnd), CaptureError> {
    let (applied, taken) = first_that_works(choice.in_order(), |back_end| back_end.find()?.apply(config))?;
    let mut others = Removed::NothingThere;
    for back_end in BackEnd::ALL.into_iter().filter(|other| *other != taken) {
        if remove_from(back_end)? == Removed::Removed {
            others = Removed::Removed;
        }
    }
    let changed = if others == Removed::Removed { Applied::Changed } else { applied };
    Ok((changed, taken))
}

/// Takes our rules away, whoever has them.
///
/// # Errors
/// See [`Capture::remove`].
pub fn remove() -> Result<Removed, CaptureError> {
    let mut removed = Removed::NothingThere;
    for back_end in BackEnd::ALL {
        if remove_from(back_end)? == Removed::Removed {
            removed = Removed::Removed;
        }
    }
    Ok(removed)
}

/// The rules of every back end that has some; without any, one state that says
/// so.
///
/// # Errors
/// See [`Capture::show`].
pub fn show() -> Result<Vec<CaptureState>, CaptureError> {
    let mut states = Vec::new();
    for back_end in BackEnd::ALL {
        if let Some(state) = if_here(back_end, "read the capture rules", |it| it.show())?
            && state.is_present()
        {
            states.push(state);
        }
    }
    if states.is_empty() {
        states.push(CaptureState::absent(BackEnd::NfTables));
    }
    Ok(states)
}

fn remove_from(back_end: BackEnd) -> Result<Removed, CaptureError> {
    let removed = if_here(back_end, "remove the capture rules", |it| it.remove())?;
    Ok(removed.unwrap_or(Removed::NothingThere))
}

/// `None` where the kernel has nothing of this back end.
fn if_here<T>(
    back_end: BackEnd,
    tried: &'static str,
    work: impl FnOnce(&dyn Capture) -> Result<T, CaptureError>,
) -> Result<Option<T>, CaptureError> {
    let variant = match back_end {
        BackEnd::NfTables => {
            return match work(&NfTables) {
                Err(error) if error.is_not_here() => Ok(None),
                other => other.map(Some),
            };
        }
        BackEnd::IptablesNft => Variant::Nft,
        BackEnd::IptablesLegacy => Variant::Legacy,
    };
    // Without the programs there can still be rules; legacy tables that
    // somebody else has made are no reason to want the programs.
    let there = has_anything(variant, tried)?;
    if there == Some(false) {
        return Ok(None);
    }
    match IpTables::find(variant) {
        Err(_) if variant == Variant::Legacy => Ok(None),
        found => match work(&found?) {
            // A kernel that has these tables for one family, or not at all.
            Err(error) if there.is_none() && error.is_not_here() => Ok(None),
            other => other.map(Some),
        },
    }
}

fn first_that_works<T>(
    candidates: &[BackEnd],
    attempt: impl Fn(BackEnd) -> Result<T, CaptureError>,
) -> Result<(T, BackEnd), CaptureError> {
    let mut reasons = Vec::new();
    for back_end in candidates {
        match attempt(*back_end) {
            Ok(done) => return Ok((done, *back_end)),
            Err(error) if error.is_not_here() => reasons.push(format!("{back_end}: {error}")),
            Err(error) => return Err(error),
        }
    }
    Err(CaptureError::NoBackEnd { reasons })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    fn refused(errno: Errno) -> CaptureError {
        CaptureError::Refused { tried: "apply the capture rules", errno, detail: String::new() }
    }

    #[test]
    fn a_kernel_without_nf_tables_gets_iptables() {
        let attempt = |back_end| match back_end {
            BackEnd::NfTables => Err(refused(Errno::EOPNOTSUPP)),
            other => Ok(other),
        };
        assert_eq!(first_that_works(&BackEnd::ALL, attempt).unwrap().1, BackEnd::IptablesNft);
    }

    #[test]
    fn who_may_not_is_told_so_and_nothing_else_is_tried() {
        let tried = std::cell::Cell::new(0);
        let attempt = |_| -> Result<(), _> {
            tried.set(tried.get() + 1);
            Err(refused(Errno::EPERM))
        };
        let error = first_that_works(&BackEnd::ALL, attempt).unwrap_err();
        assert!(matches!(error, CaptureError::Refused { errno: Errno::EPERM, .. }), "{error}");
        assert_eq!(tried.get(), 1);
    }

    #[test]
    fn where_nothing_works_every_reason_is_said() {
        let attempt = |back_end| -> Result<(), _> {
            Err(match back_end {
                BackEnd::NfTables => refused(Errno::EINVAL),
                _ => CaptureError::NoPrograms { missing: format!("{back_end}-restore"), searched: "/usr/sbin".into() },
            })
        };
        insta::assert_snapshot!(first_that_works(&BackEnd::ALL, attempt).unwrap_err());
    }
}
