//! What brings an application's answers back to the engine's transparent sockets, in one network namespace.
//!
//! The engine's SYN carries [`ENGINE_MARK`]; `tcp_fwmark_accept` gives the mark to the socket the application accepts, and
//! `fwmark_reflect` to the RST of a port where nothing listens; a rule sends what is marked to a table of ours, whose only
//! route makes every address local. So the answer to a client on another machine stays on `lo`. No iptables, no CNI chain
//! is involved.
//!
//! Everything here runs on a thread that is inside the namespace. The rule's protocol number says that it is ours, and
//! which settings were on before us: the namespace itself is the only place that outlives a restart of the engine.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::NetError;
use crate::addr::ENGINE_MARK;

/// Adds rules, routes and settings; what is there already stays.
pub(super) fn install() -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let before = match netlink.find_rule()? {
        Some(before) => before,
        None => SettingsBefore::read()?,
    };
    for family in FAMILIES {
        netlink.add("add the route of table 0x513", RouteNetlinkMessage::NewRoute(route(family)))?;
        netlink.add("add the rule for mark 0x513", RouteNetlinkMessage::NewRule(rule(family, before)))?;
    }
    before.switch("1")
}

/// Removes what [`install`] added, and nothing else.
pub(super) fn remove() -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let Some(before) = netlink.find_rule()? else { return Ok(()) };
    // The first family's rule remembers; it goes last, so that an interrupted removal can be repeated.
    before.switch("0")?;
    for family in FAMILIES.into_iter().rev() {
        netlink.remove("remove the route of table 0x513", RouteNetlinkMessage::DelRoute(route(family)))?;
        netlink
            .remove("remove the rule for mark 0x513", RouteNetlinkMessage::DelRule(rule(family, before)))?;
    }
    Ok(())
}

/// Which of [`SETTINGS`] were on before the engine came, as a bit each. Those are not ours to touch.
#[derive(Clone, Copy)]
struct SettingsBefore(u8);

impl SettingsBefore {
    fn read() -> Result<Self, NetError> {
        let mut before = 0;
        for (bit, path) in SETTINGS.iter().enumerate() {
            match std::fs::read_to_string(path) {
                Ok(value) if value.trim() != "0" => before |= 1 << bit,
                Ok(_) => {}
                // A kernel without IPv6 does not have its settings.
                Err(error) if error.kind() == io::ErrorKind::NotFound => before |= 1 << bit,
                Err(source) => return Err(NetError::Routing { step: "read the fwmark settings", source }),
            }
        }
        Ok(Self(before))
    }

    /// Writes `value` to every setting that was off.
    fn switch(self, value: &str) -> Result<(), NetError> {
        for (bit, path) in SETTINGS.iter().enumerate() {
            if self.0 & (1 << bit) == 0 {
                std::fs::write(path, value)
                    .map_err(|source| NetError::Routing { step: "write the fwmark settings", source })?;
            }
        }
        Ok(())
    }

    fn protocol(self) -> RouteProtocol {
        RouteProtocol::Other(PROTOCOL | self.0)
    }

    fn from_protocol(protocol: RouteProtocol) -> Option<Self> {
        let before = u8::from(protocol) ^ PROTOCOL;
        (before < 1 << SETTINGS.len()).then_some(Self(before))
    }
}

/// `ip rule add pref 5 fwmark 0x513 lookup 0x513`.
fn rule(family: AddressFamily, before: SettingsBefore) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader { family, action: RuleAction::ToTable, ..RuleHeader::default() };
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(ENGINE_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(before.protocol()),
    ];
    message
}

/// `ip route add local default dev lo table 0x513`.
fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LOOPBACK_IFINDEX)];
    message
}

/// A rtnetlink socket of the namespace the thread is in.
struct Netlink(Socket);

impl Netlink {
    fn open() -> Result<Self, NetError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // rtnetlink has queued the acknowledgement before `send` returns: to wait for one would be to wait for ever.
            socket.set_non_blocking(true)?;
            Ok(Self(socket))
        };
        open().map_err(|source| NetError::Routing { step: "open a rtnetlink socket", source })
    }

    /// Adds an object; one that is there already is fine, and so is a family that the namespace does not have.
    fn add(&mut self, step: &'static str, message: RouteNetlinkMessage) -> Result<(), NetError> {
        match self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Err(source) if !is(&source, &[Errno::EEXIST]) && !lacks_family(&source) => {
                Err(NetError::Routing { step, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes an object, unless it or its family is not there.
    fn remove(&mut self, step: &'static str, message: RouteNetlinkMessage) -> Result<(), NetError> {
        match self.request(message, NLM_F_ACK) {
            Err(source) if !is(&source, &[Errno::ENOENT, Errno::ESRCH]) && !lacks_family(&source) => {
                Err(NetError::Routing { step, source })
            }
            _ => Ok(()),
        }
    }

    /// What our rule of the first family remembers; `None` where there is no such rule.
    fn find_rule(&mut self) -> Result<Option<SettingsBefore>, NetError> {
        let mut all = RuleMessage::default();
        all.header.family = FAMILIES[0];
        let failed = |source| NetError::Routing { step: "list the rules", source };
        self.send(RouteNetlinkMessage::GetRule(all), NLM_F_DUMP).map_err(failed)?;
        let mut found = None;
        while self.receive(|message| found = found.or(remembered(message))).map_err(failed)? == Reply::More {}
        Ok(found)
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, flags)?;
        self.receive(|_| {}).map(|_| ())
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(|_| ())
    }

    /// Reads one datagram: the objects in it, then whether the answer goes on.
    fn receive(&mut self, mut object: impl FnMut(RouteNetlinkMessage)) -> io::Result<Reply> {
        let (datagram, _) = self.0.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(NLMSG_ALIGNTO).max(NLMSG_ALIGNTO);
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => object(inner),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => return Ok(Reply::Complete),
            }
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(Reply::More)
    }
}

/// Whether an answer of the kernel goes on in the next datagram.
#[derive(PartialEq, Eq)]
enum Reply {
    More,
    Complete,
}

/// What a rule remembers, if it is ours.
fn remembered(message: RouteNetlinkMessage) -> Option<SettingsBefore> {
    let RouteNetlinkMessage::NewRule(rule) = message else { return None };
    let ours = [RuleAttribute::Priority(RULE_PRIORITY), RuleAttribute::FwMark(ENGINE_MARK)];
    if !ours.iter().all(|attribute| rule.attributes.contains(attribute)) {
        return None;
    }
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Protocol(protocol) => SettingsBefore::from_protocol(*protocol),
        _ => None,
    })
}

fn is(error: &io::Error, any_of: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| any_of.contains(&Errno::from_raw(code)))
}

/// A kernel without IPv6 says one of the first two; a `disable_ipv6` on `lo` the third (`fib6_nh_init`, net/ipv6/route.c).
fn lacks_family(error: &io::Error) -> bool {
    is(error, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES])
}

/// Off by default, and per namespace: `/proc` shows those of the namespace that the reading thread is in
/// (Documentation/networking/ip-sysctl.rst). The first one holds for both families.
const SETTINGS: [&str; 3] = [
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
];

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The table of the one route.
const TABLE: u32 = 0x513;

/// Ahead of every rule that CNIs are known to add (Cilium: 9, AWS: 512), behind the kernel's `local` table (0).
const RULE_PRIORITY: u32 = 5;

/// `lo` has this index in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK_IFINDEX: u32 = 1;

/// Who added rule and route (`rtm_protocol`): 0x50 to 0x57, which `/etc/iproute2/rt_protos` gives to nobody.
const PROTOCOL: u8 = 0x50;

/// Messages in a datagram begin at multiples of this (include/uapi/linux/netlink.h).
const NLMSG_ALIGNTO: usize = 4;
