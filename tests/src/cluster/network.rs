//! The link between the machines of a cluster: a bridge on the control plane's, which routes between them.
//!
//! ```text
//! ctl (bridge, router: 10.77.0.1) ─┬─ n1 (10.77.0.11) ── its pods: 10.244.1.0/24
//!                                  └─ n2 (10.77.0.12) ── its pods: 10.244.2.0/24      services: 10.96.0.0/16
//! ```
//!
//! Dual-stack, IPv4 first: the same in IPv6 is fd77::1, fd77::11, fd44:0:0:1::/64 and fd96::/112. All of it is in network
//! namespaces of the cluster's own, so every cluster has the same addresses.

use std::fs;

use anyhow::{Context, Result};

use super::layout::{CONTROL, Layout, NODES};
use crate::netns::Netns;
use crate::testbed::route_packets;

/// The machines' namespaces, joined.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) control: Netns,
    pub(crate) nodes: Vec<Netns>,
}

impl Network {
    /// Makes the namespaces and the link between them.
    pub(crate) fn add(layout: &Layout) -> Result<Self> {
        let control = Netns::add(&layout.netns(CONTROL))?;
        control.ip(&format!(
            "link add br0 address 02:00:00:00:00:01 type bridge\naddr add {CONTROL_IP}/24 dev br0\n\
             addr add {CONTROL_IP6}/64 dev br0 nodad\nlink set br0 up"
        ))?;
        control.enter(route_packets)??;
        let join = |(index, name): (usize, &&str)| join(&control, &layout.netns(name), index);
        let nodes = NODES.iter().enumerate().map(join).collect::<Result<Vec<_>>>()?;
        Ok(Self { control, nodes })
    }
}

fn join(control: &Netns, name: &str, index: usize) -> Result<Netns> {
    let node = Netns::add(name)?;
    let fabric = control.name();
    let [ip, ip6] = node_ips(index);
    let others = (0..NODES.len()).filter(|other| *other != index);
    let routes: String = others.map(pod_routes).collect();
    node.ip(&format!(
        "link add eth0 type veth peer name node{index} netns {fabric}\n\
         addr add {ip}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via {CONTROL_IP}\nroute add default via {CONTROL_IP6}\n{routes}"
    ))?;
    let routes = pod_routes(index);
    control.ip(&format!("link set node{index} master br0\nlink set node{index} up\n{routes}"))?;
    node.enter(route_packets)??;
    node.enter(show_bridged_packets_to_iptables)??;
    Ok(node)
}

/// Answers between two pods of a node must pass conntrack, or those to a ClusterIP keep the pod's address.
fn show_bridged_packets_to_iptables() -> Result<()> {
    ["iptables", "ip6tables"].into_iter().try_for_each(|tables| {
        fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{tables}"), "1")
            .context("the kernel has no br_netfilter, which kube-proxy needs: modprobe br_netfilter")
    })
}

/// The way to a node's pods.
fn pod_routes(index: usize) -> String {
    let ways = pod_ranges(index).into_iter().zip(node_ips(index));
    ways.map(|(pods, node)| format!("route add {pods} via {node}\n")).collect()
}

/// A node's addresses.
pub(crate) fn node_ips(index: usize) -> [String; 2] {
    [format!("10.77.0.{}", 11 + index), format!("fd77::{}", 11 + index)]
}

/// The addresses of a node's pods.
pub(crate) fn pod_ranges(index: usize) -> [String; 2] {
    [format!("10.244.{}.0/24", 1 + index), format!("fd44:0:0:{}::/64", 1 + index)]
}

/// Where the API server and CoreDNS listen.
pub(crate) const CONTROL_IP: &str = "10.77.0.1";
const CONTROL_IP6: &str = "fd77::1";
/// The addresses of all pods.
pub(crate) const POD_RANGES: &str = "10.244.0.0/16,fd44::/48";
/// The addresses of Services.
pub(crate) const SERVICE_RANGES: &str = "10.96.0.0/16,fd96::/112";
/// The first one is the Service `kubernetes`.
pub(crate) const API_SERVICE_IP: &str = "10.96.0.1";
/// The Service `kube-dns`.
pub(crate) const DNS_SERVICE_IP: &str = "10.96.0.10";
