//! The maps as signetd uses them: workloads, ports and flows, in the types of this crate.
//!
//! One writer: `Kernel`, held by `reconcile`. Readers ([`super::Origins`], the collector) open handles of their own from
//! the pins, so none waits for another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::maps::{Array, HashMap, MapData, MapError};
use signet_common::abi::{
    Address, CAPTURE_BYPASS, CAPTURE_NOT_READY, CAPTURE_REDIRECT, Flow, MAX_ADDRESSES, Origin, Port,
    PortOwner, Workload,
};

use super::error::KernelError;
use super::object::Pins;
use super::{CaptureState, CapturedWorkload};
use crate::addr::{CgroupId, NetnsCookie};

pub(super) type Flows = HashMap<MapData, Flow, Origin>;
pub(super) type Ports = HashMap<MapData, Port, PortOwner>;

/// The maps that `Kernel` writes.
pub(super) struct Maps {
    pub(super) config: Array<MapData, signet_common::abi::Config>,
    workloads: HashMap<MapData, u64, Workload>,
    flows: Flows,
    ports: Ports,
}

impl Maps {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Ok(Self {
            config: pins.open("CONFIG")?,
            workloads: pins.open("WORKLOADS")?,
            flows: pins.open("FLOWS")?,
            ports: pins.open("PORTS")?,
        })
    }

    /// Forgets the connections to an engine that is gone, whose sockets closed with it: those of which the kernel has not seen
    /// the end. The kubelet's, which have no cookie, are none of those, and end with their own sockets.
    pub(super) fn clear_flows(&mut self) -> Result<(), KernelError> {
        remove_where(&mut self.flows, |flow, _| flow.netns != 0).map_err(KernelError::map("clear", "FLOWS"))
    }

    pub(super) fn put_workload(&mut self, workload: &CapturedWorkload) -> Result<(), KernelError> {
        let entry = entry(workload)?;
        self.workloads
            .insert(workload.cgroup.0, entry, 0)
            .map_err(KernelError::map("add a workload to", "WORKLOADS"))
    }

    /// Removes the workload first, so that nothing new is recorded for it while the rest goes.
    pub(super) fn remove_workload(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        absent_is_fine(self.workloads.remove(&cgroup.0))
            .map_err(KernelError::map("remove a workload from", "WORKLOADS"))?;
        remove_where(&mut self.flows, |_, origin| origin.cgroup == cgroup.0)
            .map_err(KernelError::map("remove a workload's flows from", "FLOWS"))?;
        self.remove_ports(cgroup)
    }

    pub(super) fn remove_ports(&mut self, cgroup: CgroupId) -> Result<(), KernelError> {
        remove_where(&mut self.ports, |_, owner| owner.cgroup == cgroup.0)
            .map_err(KernelError::map("remove a workload's ports from", "PORTS"))
    }

    pub(super) fn workloads(&self) -> Result<Vec<CgroupId>, KernelError> {
        let ids = self.workloads.keys().map(|key| key.map(CgroupId));
        ids.collect::<Result<_, _>>().map_err(KernelError::map("list", "WORKLOADS"))
    }

    /// Enters the ports on which a workload was found listening, and forgets those found earlier that are gone. Ports
    /// that the kernel itself has entered stay as they are: it knows better.
    pub(super) fn put_found_ports(
        &mut self,
        netns: NetnsCookie,
        cgroup: CgroupId,
        found: &[u16],
    ) -> Result<(), KernelError> {
        let stale = |port: &Port, owner: &PortOwner| {
            owner.cgroup == cgroup.0 && owner.listeners == 0 && !found.contains(&port.port)
        };
        remove_where(&mut self.ports, stale).map_err(KernelError::map("remove ports from", "PORTS"))?;
        for port in found {
            let owner = PortOwner { cgroup: cgroup.0, found: 1, ..PortOwner::default() };
            present_is_fine(self.ports.insert(port_key(netns, *port), owner, BPF_NOEXIST))
                .map_err(KernelError::map("add a port to", "PORTS"))?;
        }
        Ok(())
    }
}

/// The key of a port.
pub(super) fn port_key(netns: NetnsCookie, port: u16) -> Port {
    Port { netns: netns.0, port, padding: [0; 3] }
}

/// The key of the flow from `local` (the application) to `remote`.
pub(super) fn flow_key(netns: NetnsCookie, local: SocketAddr, remote: SocketAddr) -> Flow {
    Flow {
        netns: netns.0,
        local: address(local.ip()),
        remote: address(remote.ip()),
        local_port: local.port(),
        remote_port: remote.port(),
        padding: 0,
    }
}

/// An address as the maps carry it.
pub(super) fn address(ip: IpAddr) -> Address {
    Address::from(ip)
}

/// An address as the rest of the crate carries it.
pub(super) fn ip(address: Address) -> IpAddr {
    if let Some(word) = address.as_v4() {
        return IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()));
    }
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(address.0) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(octets))
}

fn entry(workload: &CapturedWorkload) -> Result<Workload, KernelError> {
    let mut entry = Workload {
        capture: match workload.capture {
            CaptureState::Bypass => CAPTURE_BYPASS,
            CaptureState::NotReady => CAPTURE_NOT_READY,
            CaptureState::Redirect => CAPTURE_REDIRECT,
        },
        host_network: u32::from(workload.host_network),
        ..Workload::default()
    };
    if let Some(extra) = workload.addresses.get(MAX_ADDRESSES) {
        return Err(KernelError::TooManyAddresses { cgroup: workload.cgroup, address: *extra });
    }
    for (slot, ip) in entry.addresses.iter_mut().zip(&workload.addresses) {
        *slot = address(*ip);
        entry.address_count += 1;
    }
    Ok(entry)
}

/// Removes what `gone` says.
pub(super) fn remove_where<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    gone: impl Fn(&K, &V) -> bool,
) -> Result<(), MapError> {
    // Collected first: removing under an iteration by "next key" starts it over.
    let mut keys = Vec::new();
    for entry in map.iter() {
        match entry {
            Ok((key, value)) if gone(&key, &value) => keys.push(key),
            // It ended between the two calls that an iteration makes.
            Ok(_) | Err(MapError::KeyNotFound) => {}
            Err(e) => return Err(e),
        }
    }
    keys.iter().try_for_each(|key| absent_is_fine(map.remove(key)))
}

/// What is not there need not be removed.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn present_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workload(addresses: Vec<IpAddr>) -> CapturedWorkload {
        CapturedWorkload {
            cgroup: CgroupId(7),
            addresses,
            host_network: false,
            capture: CaptureState::Redirect,
        }
    }

    #[test]
    fn a_ninth_address_is_refused_and_named() {
        let addresses: Vec<IpAddr> = (1..=9).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let error = entry(&workload(addresses)).unwrap_err();
        assert!(error.to_string().contains("10.0.0.9"), "{error}");
    }

    proptest! {
        #[test]
        fn an_ipv6_address_survives_the_map(octets: [u8; 16]) {
            let ip6 = IpAddr::from(octets);
            prop_assert_eq!(ip(address(ip6)), ip6.to_canonical());
        }

        #[test]
        fn an_ipv4_address_and_its_mapped_form_are_one(octets: [u8; 4]) {
            let v4 = Ipv4Addr::from(octets);
            prop_assert_eq!(address(IpAddr::V4(v4)), address(IpAddr::V6(v4.to_ipv6_mapped())));
            prop_assert_eq!(ip(address(IpAddr::V4(v4))), IpAddr::V4(v4));
        }
    }
}
