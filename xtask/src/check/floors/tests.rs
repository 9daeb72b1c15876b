//! The floor checker on sources that keep the table, and on every way to break it.

use super::*;

const LIB: &str = "
//! | floor | modules |
//! |---|---|
//! | 0 | [`drain`] |
//! | 1 | [`addr`] |
//! | 2 | [`policy`], [`state`] (`state -> policy`) |
//! | 3 | [`kernel`], [`net`], [`svid`] |
//! | 4 | [`proxy`] |
pub mod addr;
pub mod drain;
pub mod kernel;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod state;
pub mod svid;
";

fn broken(path: &str, text: &str) -> Vec<String> {
    let table = Table::parse(LIB).unwrap();
    let module = Module::of(Path::new("/nowhere"), Path::new(path)).unwrap();
    broken_in(&table, &module, text)
}

fn assert_broken(path: &str, text: &str, expected: &str) {
    let found = broken(path, text);
    assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}");
}

#[test]
fn lower_floors_and_listed_edges_are_allowed() {
    let text = "use crate::addr::Peer;\nuse crate::policy::{Flow, Permit};\nuse crate::state::part;\npub(crate) fn f() {}";
    assert!(broken("state.rs", text).is_empty());
}

#[test]
fn a_higher_floor_is_refused_with_its_line() {
    assert_broken(
        "state.rs",
        "\nuse crate::proxy::Context;",
        "state.rs:2: state (floor 2) uses proxy (floor 4)",
    );
}

#[test]
fn an_edge_holds_in_one_direction_only() {
    assert_broken("policy.rs", "use crate::state::State;", "policy (floor 2) uses state (floor 2)");
}

#[test]
fn doors_do_not_know_each_other() {
    assert_broken(
        "net/dial.rs",
        "use crate::kernel::Origin;",
        "net/dial.rs:1: net (floor 3) uses kernel (floor 3)",
    );
}

#[test]
fn a_group_is_looked_into() {
    let text = "use crate::{addr::{Peer, Local}, svid::Store, drain};";
    assert_broken("net.rs", text, "uses svid");
}

#[test]
fn a_path_inside_a_function_counts() {
    assert_broken("net.rs", "fn f() -> crate::kernel::Origin { todo!() }", "uses kernel");
}

#[test]
fn a_reexport_counts() {
    assert_broken("net.rs", "pub(crate) use crate::kernel::Origin;", "uses kernel");
}

#[test]
fn super_reaches_the_floors_only_past_the_module_itself() {
    assert_broken("net/dial.rs", "use super::super::kernel::Origin;", "uses kernel");
    assert!(broken("net/dial.rs", "use super::kernel::Origin;").is_empty());
}

#[test]
fn a_comment_is_no_import() {
    assert!(broken("net.rs", "/// See [`crate::kernel`].\n// use crate::kernel;\n").is_empty());
}

#[test]
fn a_foreign_crate_stops_at_its_door() {
    assert_broken("proxy.rs", "use aya::Ebpf;", "`aya` stops at its door (kernel)");
    assert_broken("net.rs", "fn f(x: tonic::Status) {}", "`tonic` stops at its door");
    assert!(broken("kernel/maps.rs", "use aya::Ebpf;").is_empty());
}

#[test]
fn a_module_that_shares_a_crates_name_is_not_that_crate() {
    assert!(broken("proxy.rs", "use signet_common::aya::Key;").is_empty());
}

#[test]
fn pure_floors_have_no_runtime() {
    assert_broken("addr.rs", "use tokio::net::TcpStream;", "floor 1 is pure and has no `tokio`");
    assert!(broken("net.rs", "use tokio::net::TcpStream;").is_empty());
}

#[test]
fn a_module_missing_from_the_table_is_an_error() {
    let error = Table::parse(&format!("{LIB}pub mod extra;\n")).unwrap_err();
    assert!(error.contains("extra"), "{error}");
}
