//! The nf_tables back end: netlink only, no `nft`, no shell.

use nlink::netlink::nftables::{
    BaseChain, Chain, ChainType, Family, FilterHook, Hook as KernelHook, NFT_MSG_NEWTABLE, NFTA_TABLE_NAME, NatHook,
    Policy, Priority, RawMessage, RuleExpr, RuleInfo, Transaction,
};
use nlink::netlink::{Connection, Netfilter, Nftables};

use crate::state::{CaptureState, ShownBody, ShownRule};
use crate::{Applied, BackEnd, Capture, CaptureConfig, CaptureError, Families, Hook, Removed, RuleSet};

mod translate;

/// The table that holds everything of ours.
const TABLE: &str = "byrnie";

/// Before the usual destination NAT (-100), so that a Service rule in the same
/// namespace does not decide first; after connection tracking (-200).
const PRIORITY: i32 = -110;

/// Before connection tracking (-200), where a packet's zone is chosen.
const TRACKING_PRIORITY: i32 = -300;

const FAMILY: Family = Family::Inet;

/// `NLM_F_CREATE` of `linux/netlink.h`.
const CREATE: u16 = 0x400;

/// Capture by nf_tables: table `inet byrnie` with the nat chains `output` and
/// `prerouting` at priority -110 and the filter chain `tracking` before
/// connection tracking, for IPv4 and IPv6 at once. Needs
/// `CAP_NET_ADMIN` over the network namespace, and Linux 5.2 or newer (nat in
/// the inet family).
#[derive(Debug, Clone, Copy, Default)]
pub struct NfTables;

impl Capture for NfTables {
    fn apply(&self, config: &CaptureConfig) -> Result<Applied, CaptureError> {
        let wanted = RuleSet::of(config)?;
        in_this_namespace("apply the capture rules", move |tried| async move {
            let connection = open(tried)?;
            if read(&connection, tried).await?.differences(&wanted).is_empty() {
                return Ok(Applied::Unchanged);
            }
            let refused = |error| CaptureError::from_nlink(tried, &error);
            let transaction = replace_table(connection.transaction(), &wanted)
                .map_err(|error| CaptureError::from_nlink(tried, &error))?;
            transaction.commit(&connection).await.map_err(refused)?;
            flush_conntrack().await.map_err(|error| CaptureError::not_flushed(&error))?;
            Ok(Applied::Changed)
        })
    }

    fn remove(&self) -> Result<Removed, CaptureError> {
        in_this_namespace("remove the capture rules", |tried| async move {
            let deleted = open(tried)?
                .del_table_if_exists(TABLE, FAMILY)
                .await
                .map_err(|error| CaptureError::from_nlink(tried, &error))?;
            Ok(if deleted { Removed::Removed } else { Removed::NothingThere })
        })
    }

    fn show(&self) -> Result<CaptureState, CaptureError> {
        in_this_namespace("read the capture rules", |tried| async move { read(&open(tried)?, tried).await })
    }
}

/// Runs `work` on a thread of its own with a runtime of its own. A new thread
/// has the network namespace of the thread that makes it, and a caller inside
/// an async runtime may not start a second one on its own thread.
pub(crate) fn in_this_namespace<T, F>(
    tried: &'static str,
    work: impl FnOnce(&'static str) -> F + Send,
) -> Result<T, CaptureError>
where
    T: Send,
    F: Future<Output = Result<T, CaptureError>>,
{
    let failed = |detail: String| CaptureError::Failed { tried, detail };
    let run = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?
            .block_on(work(tried))
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("byrnie-capture".into())
            .spawn_scoped(scope, run)
            .map_err(|error| failed(error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(failed("the thread that talks to the kernel panicked".into())))
    })
}

fn open(tried: &'static str) -> Result<Connection<Nftables>, CaptureError> {
    Connection::<Nftables>::new().map_err(|error| CaptureError::from_nlink(tried, &error))
}

/// The batch that makes the table anew, whether or not it was there: "add"
/// without `NLM_F_EXCL` leaves an old one alone, so that the delete after it
/// always finds one. It works on every kernel that has nf_tables.
fn replace_table(transaction: Transaction, rules: &RuleSet) -> nlink::Result<Transaction> {
    let ensure =
        RawMessage::new(NFT_MSG_NEWTABLE, FAMILY).flags(CREATE).attrs(string_attribute(NFTA_TABLE_NAME, TABLE));
    let mut transaction = transaction.raw(ensure).del_table(TABLE, FAMILY).add_table(TABLE, FAMILY);
    for hook in Hook::ALL {
        let base = match hook {
            Hook::Tracking => BaseChain::filter(FilterHook::Output, Priority::Custom(TRACKING_PRIORITY)),
            Hook::Output => BaseChain::nat(NatHook::Output, Priority::Custom(PRIORITY)),
            Hook::Prerouting => BaseChain::nat(NatHook::Prerouting, Priority::Custom(PRIORITY)),
        };
        let chain = Chain::new(TABLE, hook.as_str())?.family(FAMILY).base(base.policy(Policy::Accept));
        transaction = transaction.add_chain(chain);
    }
    for rule in rules.rules() {
        transaction = transaction.add_rule(translate::to_kernel(TABLE, FAMILY, rule));
    }
    Ok(transaction)
}

/// A netlink attribute: length, type, the text with its NUL, padding to four
/// bytes.
fn string_attribute(kind: u16, text: &str) -> Vec<u8> {
    let length = 4 + text.len() + 1;
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(text.bytes());
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

pub(crate) async fn flush_conntrack() -> nlink::Result<()> {
    Connection::<Netfilter>::new()?.flush_conntrack_all().await
}

/// Whether some table of IPv4 or IPv6 alone has a chain that begins so, as
/// iptables-nft keeps its own. Where the kernel has no nf_tables there is none.
pub(crate) fn has_chain(begins: &'static str, tried: &'static str) -> Result<bool, CaptureError> {
    let found = in_this_namespace(tried, |tried| async move {
        let chains = open(tried)?.list_chains().await.map_err(|error| CaptureError::from_nlink(tried, &error))?;
        let theirs = |family| matches!(family, Family::Ip | Family::Ip6);
        Ok(chains.iter().any(|chain| theirs(chain.family) && chain.name.starts_with(begins)))
    });
    match found {
        Err(error) if error.is_not_here() => Ok(false),
        other => other,
    }
}

async fn read(connection: &Connection<Nftables>, tried: &'static str) -> Result<CaptureState, CaptureError> {
    let refused = |error| CaptureError::from_nlink(tried, &error);
    let tables = connection.list_tables_in(FAMILY).await.map_err(refused)?;
    let Some(table) = tables.iter().find(|table| table.name == TABLE) else {
        return Ok(CaptureState::absent(BackEnd::NfTables));
    };
    let mut chain_problems = Vec::new();
    if table.flags & nlink::netlink::nftables::NFT_TABLE_F_DORMANT != 0 {
        chain_problems.push("the table is dormant: none of its rules act".to_owned());
    }
    chain_problems.extend(check_chains(connection).await.map_err(refused)?);
    let rules = connection.list_rules(TABLE, FAMILY).await.map_err(refused)?;
    Ok(CaptureState {
        back_end: BackEnd::NfTables,
        present: true,
        chain_problems,
        rules: rules.iter().map(shown).collect(),
    })
}

async fn check_chains(connection: &Connection<Nftables>) -> nlink::Result<Vec<String>> {
    let chains = connection.list_chains_in(TABLE, FAMILY).await?;
    let mut problems = Vec::new();
    for hook in Hook::ALL {
        let Some(chain) = chains.iter().find(|chain| chain.name == hook.as_str()) else {
            problems.push(format!("chain {hook} is missing"));
            continue;
        };
        let (kind, kernel_hook, priority) = expected_chain(hook);
        let expected = (Some(kind), Some(kernel_hook.number(FAMILY)), Some(priority));
        if (chain.chain_type, chain.hook, chain.priority) != expected {
            problems
                .push(format!("chain {hook} is not a {kind:?} chain on hook {kernel_hook:?} at priority {priority}"));
        }
    }
    for chain in &chains {
        if !Hook::ALL.iter().any(|hook| hook.as_str() == chain.name) {
            problems.push(format!("chain {} is not ours", chain.name));
        }
    }
    Ok(problems)
}

/// What the kernel should say of a chain: its kind, where it hooks, and when.
fn expected_chain(hook: Hook) -> (ChainType, KernelHook, i32) {
    match hook {
        Hook::Tracking => (ChainType::Filter, KernelHook::Output, TRACKING_PRIORITY),
        Hook::Output => (ChainType::Nat, KernelHook::Output, PRIORITY),
        Hook::Prerouting => (ChainType::Nat, KernelHook::Prerouting, PRIORITY),
    }
}

fn shown(rule: &RuleInfo) -> ShownRule {
    let counter = rule.expressions().into_iter().find_map(|e| match e {
        RuleExpr::Counter { packets, bytes, .. } => Some((packets, bytes)),
        _ => None,
    });
    let (connections, bytes) = counter.unwrap_or_default();
    let body = translate::from_kernel(rule)
        .map_or_else(|| ShownBody::Foreign(rule.nft_syntax().unwrap_or_else(|| "(unknown)".into())), ShownBody::Ours);
    ShownRule { families: Families::Both, chain: rule.chain.clone(), body, connections, bytes }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_string_attribute_is_padded_and_counts_its_nul() {
        let length = 11_u16.to_ne_bytes();
        let kind = 1_u16.to_ne_bytes();
        let mut expected = vec![length[0], length[1], kind[0], kind[1]];
        expected.extend(b"byrnie\0\0");
        assert_eq!(string_attribute(1, "byrnie"), expected);
    }
}
