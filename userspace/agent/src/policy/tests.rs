//! The evaluator against a naive one over random policies and flows; `promises` has the corner cases one by one.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use arbitrary::{OwnedFlow, ROOT};

mod arbitrary;
mod naive;
mod promises;

fn set(authorizations: &[AuthorizationPolicy], authentications: &[PeerAuthentication]) -> PolicySet {
    let mut set = PolicySet::new(ROOT);
    authorizations.iter().for_each(|policy| set.upsert_authorization(policy.clone()));
    authentications.iter().for_each(|policy| set.upsert_peer_authentication(policy.clone()));
    set
}

fn authorizations() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    vec(arbitrary::authorization(), 0..10)
        .prop_map(|all| arbitrary::distinct(all, |p| (p.namespace.clone(), p.name.clone())))
}

fn authentications() -> impl Strategy<Value = Vec<PeerAuthentication>> {
    vec(arbitrary::authentication(), 0..8)
        .prop_map(|all| arbitrary::distinct(all, |p| (p.namespace.clone(), p.name.clone())))
}

/// Whether the indexed answer is one that the naive evaluator gives; where several policies match, any may be named.
fn agrees(answer: &Result<Permit, Denial>, naive: &str) -> bool {
    let named = |verb: &str, id: &str| naive.starts_with(verb) && naive.contains(&format!("{id:?}"));
    match answer {
        Ok(permit) => permit.rule().map_or(naive == "allow", |id| named("allow [", id)),
        Err(Denial::Denied(id)) => named("deny", id),
        Err(Denial::MtlsRequired(id)) => naive == format!("mtls {id}"),
        Err(Denial::PolicyUnknown(_)) => false,
        Err(Denial::NotAllowed(ids)) => {
            let mut ids = ids.clone();
            ids.sort();
            naive == format!("not allowed {ids:?}")
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_indexed_evaluator_agrees_with_the_naive_one(
        authorizations in authorizations(),
        authentications in authentications(),
        flow in arbitrary::flow(),
    ) {
        let answer = set(&authorizations, &authentications).authorize(&flow.flow());
        let naive = naive::answer(ROOT, &authorizations, &authentications, &flow.flow());
        prop_assert!(agrees(&answer, &naive), "{answer:?} against {naive}");
    }

    #[test]
    fn the_mtls_mode_agrees_with_the_naive_one(all in authentications(), flow in arbitrary::flow()) {
        let (mode, object) = set(&[], &all).mtls_mode(flow.namespace, &flow.labels, flow.destination_port);
        let object = object.map(|id| id.to_string());
        prop_assert_ne!(mode, MtlsMode::Unset);
        prop_assert_eq!((mode, object), naive::mtls(ROOT, &all, &flow.flow()));
    }

    #[test]
    fn what_was_removed_leaves_no_trace(
        kept in authorizations(),
        gone in authorizations(),
        authentications in authentications(),
        flow in arbitrary::flow(),
    ) {
        let mut churned = set(&gone, &authentications);
        kept.iter().for_each(|policy| churned.upsert_authorization(policy.clone()));
        for policy in gone.iter().filter(|g| !kept.iter().any(|k| (&k.namespace, &k.name) == (&g.namespace, &g.name))) {
            churned.remove_authorization(&policy.namespace, &policy.name);
        }
        for policy in &authentications {
            churned.remove_peer_authentication(&policy.namespace, &policy.name);
        }
        let naive = naive::answer(ROOT, &kept, &[], &flow.flow());
        prop_assert!(agrees(&churned.authorize(&flow.flow()), &naive));
        prop_assert!(churned.peer_authentications().is_empty());
    }

    #[test]
    fn one_more_deny_policy_never_lets_more_pass(
        authorizations in authorizations(),
        mut deny in arbitrary::authorization(),
        flow in arbitrary::flow(),
    ) {
        deny.name = "one-more".into();
        deny.action = Action::Deny;
        let mut set = set(&authorizations, &[]);
        let before = set.authorize(&flow.flow());
        set.upsert_authorization(deny);
        prop_assert!(before.is_ok() || set.authorize(&flow.flow()).is_err());
    }

    #[test]
    fn an_attribute_that_cannot_be_evaluated_never_lets_more_pass(
        mut authorizations in authorizations(),
        flow in arbitrary::flow(),
    ) {
        let before = set(&authorizations, &[]).authorize(&flow.flow());
        authorizations.iter_mut().flat_map(|p| &mut p.rules).for_each(|rule| rule.unsupported = true);
        prop_assert!(before.is_ok() || set(&authorizations, &[]).authorize(&flow.flow()).is_err());
    }

    #[test]
    fn a_dry_run_policy_never_changes_the_answer_but_the_shadow_tells(
        authorizations in authorizations(),
        mut dry in arbitrary::authorization(),
        flow in arbitrary::flow(),
    ) {
        dry.name = "dry".into();
        dry.dry_run = true;
        let enforced: Vec<_> = authorizations.iter().filter(|p| !p.dry_run).cloned().collect();
        let mut set = set(&enforced, &[]);
        let before = set.authorize(&flow.flow()).map(|permit| permit.rule().map(String::from));
        set.upsert_authorization(dry.clone());
        let after = set.authorize(&flow.flow()).map(|permit| permit.rule().map(String::from));
        prop_assert_eq!(before, after);

        let told = set.shadow(&flow.flow());
        dry.dry_run = false;
        set.upsert_authorization(dry);
        match told {
            Shadow::Silent => {}
            Shadow::WouldAllow => prop_assert!(set.authorize(&flow.flow()).is_ok()),
            Shadow::WouldDeny(denial) => prop_assert_eq!(set.authorize(&flow.flow()).unwrap_err(), denial),
        }
    }
}
