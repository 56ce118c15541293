//! One rule of ours as nf_tables has it, and back.

use ipnet::IpNet;
use nlink::netlink::nftables::{
    CmpOp, CtKey, Expr, Family, Field, Item, Match as KernelMatch, MatchOp, MetaKey, NFTA_CT_DIRECTION, NFTA_CT_KEY,
    NFTA_CT_SREG, RawExpr, Register, Rule as KernelRule, RuleInfo, RuleSpec, Stmt, Value, Verdict,
};

use crate::{Action, Hook, Match, Purpose, Rule};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// The rule as a message to the kernel, with a counter before the action and
/// the purpose as its comment.
pub(super) fn to_kernel(table: &str, family: Family, rule: &Rule) -> KernelRule {
    let mut spec = RuleSpec::new();
    for condition in &rule.matches {
        for item in items(condition) {
            spec.push(item);
        }
    }
    spec.push(Stmt::Counter);
    match rule.action {
        Action::Accept => spec.push(Verdict::Accept),
        Action::Redirect(port) => spec.push(Stmt::Redirect(Some(port))),
        Action::Zone(zone) => {
            spec.push(Expr::Immediate { dreg: Register::R0, data: zone.to_ne_bytes().to_vec() });
            spec.push(Expr::Raw(RawExpr::new("ct", original_zone())));
        }
    }
    let spec = spec.comment(rule.purpose.as_str());
    KernelRule::from_spec(table, rule.hook.as_str(), spec).family(family)
}

fn items(condition: &Match) -> Vec<Item> {
    let one = |field, value: Value| vec![KernelMatch::eq(field, value).into()];
    match condition {
        Match::Tcp => one(Field::L4Proto, TCP.into()),
        Match::DestinationPort(port) => one(Field::TcpDport, (*port).into()),
        Match::Destination(net) => one(
            match net {
                IpNet::V4(_) => Field::Ip4Daddr,
                IpNet::V6(_) => Field::Ip6Daddr,
            },
            Value::Prefix(net.addr(), net.prefix_len()),
        ),
        Match::SocketUid(uid) => loaded(MetaKey::SkUid, CmpOp::Eq, *uid).to_vec(),
        Match::Mark(mark) => one(Field::Mark, (*mark).into()),
        Match::OtherSocketUid(uid) => loaded(MetaKey::SkUid, CmpOp::Neq, *uid).to_vec(),
        Match::OtherMark(mark) => vec![KernelMatch::ne(Field::Mark, *mark).into()],
        Match::Priority(priority) => loaded(MetaKey::Priority, CmpOp::Eq, *priority).to_vec(),
        Match::OutInterface(name) => one(Field::Oifname, name.as_str().into()),
        Match::InInterface(name) => one(Field::Iifname, name.as_str().into()),
    }
}

/// `meta skuid` and `meta priority`, which nlink has no typed matches for. The
/// register holds the number in host order.
fn loaded(key: MetaKey, op: CmpOp, number: u32) -> [Item; 2] {
    let load = Expr::Meta { dreg: Register::R0, key };
    let compare = Expr::Cmp { sreg: Register::R0, op, data: number.to_ne_bytes().to_vec() };
    [load.into(), compare.into()]
}

/// `ct original zone set` from the first register, as netlink attributes:
/// nlink has the statement without a direction, which would give the replies
/// a zone, too.
fn original_zone() -> Vec<u8> {
    let attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    [
        attribute(NFTA_CT_SREG, &(Register::R0 as u32).to_be_bytes()),
        attribute(NFTA_CT_KEY, &(CtKey::Zone as u32).to_be_bytes()),
        attribute(NFTA_CT_DIRECTION, &[ORIGINAL]),
    ]
    .concat()
}

/// `IP_CT_DIR_ORIGINAL` of `linux/netfilter/nf_conntrack_tuple_common.h`.
const ORIGINAL: u8 = 0;

/// The rule that the kernel has, or `None` when Byrnie writes none like it.
pub(super) fn from_kernel(info: &RuleInfo) -> Option<Rule> {
    let spec = info.spec();
    let hook = Hook::ALL.into_iter().find(|hook| hook.as_str() == info.chain)?;
    let purpose = Purpose::from_label(spec.comment_ref()?)?;
    let mut matches = Vec::new();
    let mut items = spec.items().iter();
    let action = loop {
        match items.next()? {
            Item::Match(found) => matches.push(condition(found)?),
            Item::Expr(Expr::Meta { key, .. }) => matches.push(loaded_condition(*key, items.next()?)?),
            Item::Stmt(Stmt::Counter) => {}
            Item::Stmt(Stmt::Redirect(Some(port))) => break Action::Redirect(*port),
            Item::Expr(Expr::Immediate { data, .. }) => break zone_action(data, items.next()?)?,
            Item::Verdict(Verdict::Accept) => break Action::Accept,
            _ => return None,
        }
    };
    items.next().is_none().then_some(Rule { hook, matches, action, purpose })
}

fn zone_action(data: &[u8], set: &Item) -> Option<Action> {
    let zone = u16::from_ne_bytes(data.try_into().ok()?);
    // The kernel may leave the padding of the last attribute out.
    let is_ours = |found: &RawExpr| {
        found.data.as_deref().is_some_and(|data| !data.is_empty() && original_zone().starts_with(data))
    };
    matches!(set, Item::Expr(Expr::Raw(found)) if found.name == "ct" && is_ours(found)).then_some(Action::Zone(zone))
}

fn condition(found: &KernelMatch) -> Option<Match> {
    match (found.op, &found.field, &found.value) {
        (MatchOp::Eq, _, _) => {}
        (MatchOp::Ne, Field::Mark, Value::Int(mark)) => return Some(Match::OtherMark(u32::try_from(*mark).ok()?)),
        _ => return None,
    }
    Some(match (&found.field, &found.value) {
        (Field::L4Proto, Value::Int(protocol)) if *protocol == u64::from(TCP) => Match::Tcp,
        (Field::TcpDport, Value::Int(port)) => Match::DestinationPort(u16::try_from(*port).ok()?),
        (Field::Mark, Value::Int(mark)) => Match::Mark(u32::try_from(*mark).ok()?),
        (Field::Oifname, Value::Name(name)) => Match::OutInterface(name.clone()),
        (Field::Iifname, Value::Name(name)) => Match::InInterface(name.clone()),
        (Field::Ip4Daddr | Field::Ip6Daddr, Value::Addr(address)) => Match::Destination(IpNet::from(*address)),
        (Field::Ip4Daddr | Field::Ip6Daddr, Value::Prefix(address, length)) => {
            Match::Destination(IpNet::new(*address, *length).ok()?)
        }
        _ => return None,
    })
}

fn loaded_condition(key: MetaKey, compare: &Item) -> Option<Match> {
    let Item::Expr(Expr::Cmp { op, data, .. }) = compare else { return None };
    let number = u32::from_ne_bytes(data.as_slice().try_into().ok()?);
    match (key, op) {
        (MetaKey::SkUid, CmpOp::Eq) => Some(Match::SocketUid(number)),
        (MetaKey::SkUid, CmpOp::Neq) => Some(Match::OtherSocketUid(number)),
        (MetaKey::Priority, CmpOp::Eq) => Some(Match::Priority(number)),
        _ => None,
    }
}
