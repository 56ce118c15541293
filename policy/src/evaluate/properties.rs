//! What holds for every set of policies and every connection.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::IpAddr;

use proptest::prelude::*;

use crate::testing::{AnyCaller, any_authorization_rule, any_caller, any_id, any_policies, any_port, any_time, strict};
use crate::*;

prop_compose! {
    fn any_question()(caller in any_caller(), port in any_port(), now in any_time()) -> (AnyCaller, u16, std::time::SystemTime) {
        (caller, port, now)
    }
}

fn ask(policies: &Policies, question: &(AnyCaller, u16, std::time::SystemTime)) -> Decision {
    let (caller, port, now) = question;
    what_if(policies, &Question { caller: caller.as_caller(), port: *port, now: *now })
}

fn any_destination() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<IpAddr>(),
        Just("203.0.113.9".parse().unwrap()),
        Just("198.51.100.7".parse().unwrap()),
        Just("2001:db8::7".parse().unwrap()),
    ]
}

proptest! {
    #[test]
    fn another_deny_never_allows_more(mut policies in any_policies(), mut rule in any_authorization_rule(), question in any_question()) {
        let before = ask(&policies, &question);
        rule.action = Action::Deny;
        policies.authorization.push(rule);
        prop_assert!(before.allowed || !ask(&policies, &question).allowed);
    }

    #[test]
    fn a_rule_in_audit_never_changes_what_is_decided(mut policies in any_policies(), mut rule in any_authorization_rule(), question in any_question()) {
        let before = ask(&policies, &question);
        rule.enforcement = Enforcement::Audit;
        policies.authorization.push(rule);
        let after = ask(&policies, &question);
        prop_assert_eq!((before.allowed, before.reason, before.rule), (after.allowed, after.reason, after.rule));
    }

    #[test]
    fn an_audited_rule_is_named_exactly_where_enforcing_all_of_them_would_turn_the_answer_over(policies in any_policies(), question in any_question()) {
        let now = ask(&policies, &question);
        let mut enforced = policies;
        for rule in &mut enforced.authorization {
            rule.enforcement = Enforcement::Enforce;
        }
        prop_assert_eq!(now.audited.is_empty(), ask(&enforced, &question).allowed == now.allowed);
    }

    #[test]
    fn the_order_of_the_rules_does_not_matter(
        policies in any_policies(), question in any_question(), turn in any::<prop::sample::Index>(),
        source in any_id(), destination in any_destination(),
    ) {
        let mut turned = policies.clone();
        macro_rules! shuffle {
            ($($list:ident),*) => {$(
                turned.$list.reverse();
                if !turned.$list.is_empty() {
                    let by = turn.index(turned.$list.len());
                    turned.$list.rotate_left(by);
                }
            )*};
        }
        shuffle!(mtls, authorization, ingress, egress);
        prop_assert_eq!(ask(&policies, &question), ask(&turned, &question));
        let request = EgressRequest { source: &source, destination, port: question.1 };
        prop_assert_eq!(evaluate_egress(&policies, &request), evaluate_egress(&turned, &request));
    }

    #[test]
    fn another_ingress_rule_changes_nothing_for_the_mesh_and_for_plaintext(policies in any_policies(), question in any_question()) {
        prop_assume!(!matches!(question.0, AnyCaller::Ingress(_)));
        let without = Policies { ingress: Vec::new(), ..policies.clone() };
        prop_assert_eq!(ask(&policies, &question), ask(&without, &question));
    }

    #[test]
    fn a_client_outside_of_the_mesh_gets_in_by_an_ingress_rule_only(policies in any_policies(), id in any_id(), port in any_port(), now in any_time()) {
        let decision = ask(&policies, &(AnyCaller::Ingress(id.clone()), port, now));
        let named = policies.ingress.iter().any(|rule| rule.principals.contains(&id) && rule.ports.contains(port));
        prop_assert!(!decision.allowed || (named && decision.reason == Reason::IngressRule));
    }

    #[test]
    fn plaintext_gets_in_only_under_a_permissive_that_has_not_ended(policies in any_policies(), port in any_port(), now in any_time()) {
        let decision = ask(&policies, &(AnyCaller::Plaintext, port, now));
        let permitted = policies.mtls.iter().any(|rule| {
            let covers = match rule.scope { MtlsScope::Port(only) => only.get() == port, _ => true };
            covers && matches!(rule.terms, MtlsTerms::Permissive { until } if until.is_none_or(|until| now < until))
        });
        prop_assert!(!decision.allowed || (permitted && decision.reason == Reason::Permissive));
    }

    #[test]
    fn a_strict_rule_for_a_port_closes_it_to_plaintext_whatever_else_is_said(mut policies in any_policies(), port in any_port(), now in any_time()) {
        policies.mtls.push(strict("MtlsPolicy shop/more", MtlsScope::Port(port.try_into().unwrap())));
        prop_assert_eq!(policies.mtls_mode(port, now), MtlsMode::Strict);
        prop_assert!(!ask(&policies, &(AnyCaller::Plaintext, port, now)).allowed);
    }

    #[test]
    fn nothing_changes_before_the_moment_that_is_announced(policies in any_policies(), question in any_question(), later in any_time()) {
        let (caller, port, now) = question;
        let quiet = policies.next_change(now).is_none_or(|change| later < change);
        prop_assume!(later >= now && quiet);
        let decision = ask(&policies, &(caller.clone(), port, now));
        prop_assert_eq!(decision, ask(&policies, &(caller, port, later)));
    }

    #[test]
    fn a_decision_allows_exactly_where_its_reason_does(policies in any_policies(), question in any_question()) {
        let decision = ask(&policies, &question);
        prop_assert_eq!(decision.allowed, decision.reason.allows());
    }

    #[test]
    fn what_leaves_is_named_by_an_egress_rule_or_let_out_by_default(policies in any_policies(), source in any_id(), destination in any_destination(), port in any_port()) {
        let decision = evaluate_egress(&policies, &EgressRequest { source: &source, destination, port });
        let named = policies.egress.iter().any(|rule| rule.cidrs.iter().any(|cidr| cidr.contains(&destination.to_canonical())));
        prop_assert!(!decision.allowed || named || policies.egress_default == DefaultAction::Allow);
    }

    #[test]
    fn a_set_survives_the_wire_unchanged(policies in any_policies()) {
        let message = byrnie_proto::mesh::v1::Policies::from(&policies);
        prop_assert_eq!(Policies::try_from(message), Ok(policies));
    }
}
