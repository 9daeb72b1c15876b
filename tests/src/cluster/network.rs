//! The link between the machines of a cluster: a bridge on the control plane's, which routes between them.
//!
//! ```text
//! ctl (bridge, router: 10.77.0.1) ─┬─ n1 (10.77.0.11) ── its pods: 10.244.1.0/24
//!                                  └─ n2 (10.77.0.12) ── its pods: 10.244.2.0/24      services: 10.96.0.0/16
//! ```
//!
//! All of it is in network namespaces of the cluster's own, so every cluster has the same addresses. IPv4 only.

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
            "link add br0 address 02:00:00:00:00:01 type bridge\naddr add {CONTROL_IP}/24 dev br0\nlink set br0 up"
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
    let others = (0..NODES.len()).filter(|other| *other != index);
    let routes: String =
        others.map(|other| format!("route add {} via {}\n", pod_range(other), node_ip(other))).collect();
    node.ip(&format!(
        "link add eth0 type veth peer name node{index} netns {fabric}\n\
         addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {CONTROL_IP}\n{routes}",
        node_ip(index)
    ))?;
    control.ip(&format!(
        "link set node{index} master br0\nlink set node{index} up\nroute add {} via {}",
        pod_range(index),
        node_ip(index)
    ))?;
    node.enter(route_packets)??;
    node.enter(show_bridged_packets_to_iptables)??;
    Ok(node)
}

/// Answers between two pods of a node must pass conntrack, or those to a ClusterIP keep the pod's address.
fn show_bridged_packets_to_iptables() -> Result<()> {
    fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
        .context("the kernel has no br_netfilter, which kube-proxy needs: modprobe br_netfilter")
}

/// A node's address.
pub(crate) fn node_ip(index: usize) -> String {
    format!("10.77.0.{}", 11 + index)
}

/// The addresses of a node's pods.
pub(crate) fn pod_range(index: usize) -> String {
    format!("10.244.{}.0/24", 1 + index)
}

/// Where the API server and CoreDNS listen.
pub(crate) const CONTROL_IP: &str = "10.77.0.1";
/// The addresses of all pods.
pub(crate) const POD_RANGE: &str = "10.244.0.0/16";
/// The addresses of Services.
pub(crate) const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The first one is the Service `kubernetes`.
pub(crate) const API_SERVICE_IP: &str = "10.96.0.1";
/// The Service `kube-dns`.
pub(crate) const DNS_SERVICE_IP: &str = "10.96.0.10";
