//! The table of every decision.

use super::*;
use crate::abi::{PATH_NATIVE, STAGE_CONNECT, STAGE_ENDED, STAGE_PUBLISHED};
use crate::direct::{ADMISSION_NONE, ADMISSION_SYN, Permit};

const DESTINATIONS: [Destination; 3] = [Destination::LocalHost, Destination::Own, Destination::Elsewhere];
const FAULTS_OF_CONNECTIONS: [Fault; 8] = [
    Fault::ForeignSource,
    Fault::Stray,
    Fault::Diverted,
    Fault::OriginNotRecorded,
    Fault::BoundToDevice,
    Fault::FlowNotPublished,
    Fault::ListenerGone,
    Fault::ListenerUnfit,
];

#[test]
fn a_ready_workload_leaves_only_through_the_engine() {
    let ready = Caller::Workload(Capture::Redirect);
    assert_eq!(connect(ready, Destination::Elsewhere).verdict, Verdict::Redirect);
    assert_eq!(connect(ready, Destination::Own), bypass(Reason::OwnAddress));
    assert_eq!(connect(ready, Destination::LocalHost), bypass(Reason::LocalHost));
}

#[test]
fn a_workload_that_is_not_ready_waits_for_the_engine_and_never_leaves() {
    let waiting = Caller::Workload(Capture::NotReady);
    assert_eq!(connect(waiting, Destination::Elsewhere), redirect(Reason::NotReady));
    assert_eq!(connect(waiting, Destination::Own), redirect(Reason::NotReady));
}

#[test]
fn only_what_waits_for_a_living_engine_is_held() {
    for listens in [true, false] {
        assert!(is_held(Capture::NotReady, listens, true));
        assert!(!is_held(Capture::Bypass, listens, true), "nobody will come to listen for it");
    }
    assert!(is_held(Capture::Redirect, false, true));
    assert!(!is_held(Capture::Redirect, true, true));
    for capture in [Capture::Bypass, Capture::NotReady, Capture::Redirect] {
        assert!(!is_held(capture, false, false));
    }
}

#[test]
fn a_syn_from_outside_waits_for_an_engine_that_may_come_back() {
    let kept =
        |port, is_admitted, listens, awaited| is_kept_outside(port, || is_admitted, || listens, awaited);
    assert!(kept(8080, false, false, true));
    assert!(!kept(8080, true, false, true), "it does not go to the engine");
    assert!(!kept(8080, false, true, true), "the engine takes it");
    assert!(!kept(8080, false, false, false), "nobody comes back");
    assert!(!kept(HBONE_PORT, false, false, true), "other engines wait by themselves");
}

#[test]
fn without_its_engine_a_workload_talks_to_itself_alone() {
    assert_eq!(connect(Caller::Stranded, Destination::Elsewhere), deny(Reason::EngineGone));
    assert_eq!(connect(Caller::Stranded, Destination::Own), bypass(Reason::OwnAddress));
    assert_eq!(connect(Caller::Stranded, Destination::LocalHost), bypass(Reason::LocalHost));
}

#[test]
fn an_unknown_pod_waits_for_a_living_engine() {
    assert_eq!(connect(Caller::UnknownPod, Destination::Elsewhere), deny(Reason::UnknownPod));
}

#[test]
fn without_an_engine_configuration_decides_for_unknown_pods() {
    for (deny, verdict) in [(false, Verdict::Bypass), (true, Verdict::Deny)] {
        let caller = Caller::UnknownPodEngineGone { deny };
        assert_eq!(connect(caller, Destination::Elsewhere).verdict, verdict);
    }
}

#[test]
fn nothing_outside_the_pods_root_is_ever_held_up() {
    for caller in [Caller::Outside, Caller::Engine, Caller::Kubelet, Caller::Workload(Capture::Bypass)] {
        for destination in DESTINATIONS {
            assert_eq!(connect(caller, destination).verdict, Verdict::Bypass, "{caller:?} {destination:?}");
        }
    }
}

#[test]
fn a_value_no_version_wrote_is_not_ready() {
    assert_eq!(Capture::of(&Workload { capture: 7, ..Workload::default() }), Capture::NotReady);
}

/// A SYN from outside for a pod.
const OUTSIDE: Syn =
    Syn { from_inside: false, port: 80, owned: None, direct: false, probe: false, engine_alive: true };

#[test]
fn nobody_waits_for_an_engine_that_hangs_and_nothing_else_depends_on_it() {
    let gone = Syn { engine_alive: false, ..OUTSIDE };
    for port in [80, HBONE_PORT] {
        assert_eq!(syn(Syn { port, ..gone }), deny(Reason::EngineGone));
    }
    assert_eq!(syn(Syn { port: 22, owned: Some(true), ..gone }), deny(Reason::EngineGone));
    assert_eq!(syn(Syn { port: 22, owned: Some(false), ..gone }), bypass(Reason::UnownedPort));
    assert_eq!(syn(Syn { from_inside: true, ..gone }), bypass(Reason::LocalSyn));
    assert_eq!(syn(Syn { direct: true, ..gone }), bypass(Reason::DirectSyn));
    assert_eq!(syn(Syn { probe: true, ..gone }), bypass(Reason::ProbeSyn));
}

#[test]
fn every_syn_from_outside_a_pod_goes_to_the_engine() {
    for port in [1, 80, 15001, 15006, 65535] {
        let decision = syn(Syn { port, ..OUTSIDE });
        assert_eq!(decision, redirect(Reason::Plaintext));
        assert_eq!(decision.reason.listener(), LISTENER_PLAINTEXT);
    }
    let hbone = syn(Syn { port: HBONE_PORT, ..OUTSIDE });
    assert_eq!(hbone.reason.listener(), LISTENER_HBONE);
}

#[test]
fn a_syn_of_the_kubelets_reaches_the_application() {
    for owned in [None, Some(true), Some(false)] {
        let decision = syn(Syn { owned, probe: true, ..OUTSIDE });
        assert_eq!(decision, bypass(Reason::ProbeSyn));
    }
}

#[test]
fn on_the_node_only_owned_ports_are_steered() {
    let at = |owned| syn(Syn { port: 22, owned: Some(owned), ..OUTSIDE }).verdict;
    assert_eq!(at(false), Verdict::Bypass);
    assert_eq!(at(true), Verdict::Redirect);
}

#[test]
fn a_syn_from_inside_reaches_the_application() {
    for owned in [None, Some(true), Some(false)] {
        let decision = syn(Syn { from_inside: true, port: HBONE_PORT, owned, ..OUTSIDE });
        assert_eq!(decision, bypass(Reason::LocalSyn));
    }
}

#[test]
fn no_fault_lets_a_connection_pass() {
    for fault in FAULTS_OF_CONNECTIONS {
        assert_eq!(on_fault(fault), Verdict::Deny, "{fault:?}");
    }
}

/// A connect under a permit that holds.
const HELD: Errand = Errand { permit: Some(7), epoch: 7, engine_alive: true, is_servers_port: true };

#[test]
fn a_permit_that_holds_opens_the_native_path() {
    let direct = Decision { verdict: Verdict::Direct, reason: Reason::Permitted };
    assert_eq!(outbound(HELD), direct);
}

#[test]
fn whatever_a_permit_lacks_leads_through_the_engine() {
    assert_eq!(outbound(Errand { permit: None, ..HELD }), redirect(Reason::Outbound));
    for lacking in [
        Errand { permit: Some(6), ..HELD },
        Errand { permit: Some(8), ..HELD },
        Errand { engine_alive: false, ..HELD },
        Errand { is_servers_port: false, ..HELD },
    ] {
        assert_eq!(outbound(lacking), redirect(Reason::StalePermit), "{lacking:?}");
    }
}

fn record(host_network: u32, admission: u32) -> Direct {
    let permit = Permit { server: 5, netns: 9, host_network, ..Permit::default() };
    Direct { permit, admission, ..Direct::default() }
}

#[test]
fn a_direct_flow_is_let_in_where_its_server_lives_and_nowhere_else() {
    for admission in [ADMISSION_NONE, ADMISSION_SYN] {
        assert!(admits(&record(0, admission), 9, None));
        assert!(!admits(&record(0, admission), 8, None), "another namespace");
        assert!(admits(&record(1, admission), 9, Some(5)));
        assert!(!admits(&record(1, admission), 9, Some(4)), "another workload's port");
        assert!(!admits(&record(1, admission), 9, None), "nobody's port");
    }
    let syn = syn(Syn { direct: true, ..OUTSIDE });
    assert_eq!(syn, bypass(Reason::DirectSyn));
}

#[test]
fn a_direct_flow_that_the_server_has_lets_no_other_in() {
    assert!(!admits(&record(0, ADMISSION_DONE), 9, None));
    assert!(!admits(&record(1, ADMISSION_DONE), 9, Some(5)));
}

#[test]
fn a_direct_socket_sends_only_its_syn_before_the_server_is_known() {
    for stage in [STAGE_CONNECT, STAGE_PUBLISHED] {
        assert_eq!(departure(PATH_DIRECT, stage, true), None);
        assert_eq!(departure(PATH_DIRECT, stage, false), Some(Fault::Stray));
    }
    for stage in [STAGE_OPEN, STAGE_ENDED] {
        assert_eq!(departure(PATH_DIRECT, stage, false), None);
    }
}

#[test]
fn a_redirected_socket_sends_nothing_out_of_its_namespace() {
    for is_connecting in [true, false] {
        assert_eq!(departure(PATH_REDIRECT, STAGE_OPEN, is_connecting), Some(Fault::Diverted));
    }
    assert_eq!(departure(PATH_NATIVE, 0, false), None);
}
