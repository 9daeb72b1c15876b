//! What brings an application's answers back to the engine's transparent sockets, in one network namespace.
//!
//! The engine's SYN carries [`ENGINE_MARK`]; `tcp_fwmark_accept` gives the mark to the socket the application accepts;
//! a rule sends what is marked to a table of ours, whose only route makes every address local. So the answer to a
//! client on another machine stays on `lo`. Nothing else carries the mark, and no iptables, no CNI chain is involved.
//!
//! Everything here runs on a thread that is inside the namespace. Rules and routes bear protocol numbers of our own, by
//! which [`remove`] finds them, and by which the rule remembers whether `tcp_fwmark_accept` was set before us: the
//! namespace itself is the only place that outlives a restart of the engine. It sets nothing per connection.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleHeader, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::errno::Errno;

use super::{ENGINE_MARK, NetError};

/// Adds rule, route and setting; what is there already stays.
pub(super) fn install() -> Result<(), NetError> {
    let was_set = fwmark_accept()?;
    let protocol = if was_set { SETTING_WAS_SET } else { SETTING_IS_OURS };
    let mut netlink = Netlink::open()?;
    for family in FAMILIES {
        netlink.add("add the route of table 0x513", RouteNetlinkMessage::NewRoute(route(family)))?;
        netlink.add("add the rule for mark 0x513", RouteNetlinkMessage::NewRule(rule(family, protocol)))?;
    }
    if was_set { Ok(()) } else { set_fwmark_accept(true) }
}

/// Removes what [`install`] added, and nothing else.
pub(super) fn remove() -> Result<(), NetError> {
    let mut netlink = Netlink::open()?;
    let mut setting_is_ours = false;
    for family in FAMILIES {
        setting_is_ours |= netlink.remove_rule(family, SETTING_IS_OURS)?;
        netlink.remove_rule(family, SETTING_WAS_SET)?;
        netlink.remove("remove the route of table 0x513", RouteNetlinkMessage::DelRoute(route(family)))?;
    }
    if setting_is_ours { set_fwmark_accept(false) } else { Ok(()) }
}

fn fwmark_accept() -> Result<bool, NetError> {
    let value = std::fs::read_to_string(FWMARK_ACCEPT)
        .map_err(|source| NetError::Routing { step: "read net.ipv4.tcp_fwmark_accept", source })?;
    Ok(value.trim() != "0")
}

fn set_fwmark_accept(on: bool) -> Result<(), NetError> {
    std::fs::write(FWMARK_ACCEPT, if on { "1" } else { "0" })
        .map_err(|source| NetError::Routing { step: "write net.ipv4.tcp_fwmark_accept", source })
}

/// `ip rule add pref 5 fwmark 0x513 lookup 0x513`.
fn rule(family: AddressFamily, protocol: RouteProtocol) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header = RuleHeader { family, action: RuleAction::ToTable, ..RuleHeader::default() };
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(ENGINE_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Protocol(protocol),
    ];
    message
}

/// `ip route add local default dev lo table 0x513`.
fn route(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family,
        protocol: ROUTE_PROTOCOL,
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
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(source) if !is(&source, &[Errno::EEXIST]) && !lacks_family(&source) => {
                Err(NetError::Routing { step, source })
            }
            _ => Ok(()),
        }
    }

    fn remove_rule(&mut self, family: AddressFamily, protocol: RouteProtocol) -> Result<bool, NetError> {
        self.remove("remove the rule for mark 0x513", RouteNetlinkMessage::DelRule(rule(family, protocol)))
    }

    /// Removes an object. True where there was one.
    fn remove(&mut self, step: &'static str, message: RouteNetlinkMessage) -> Result<bool, NetError> {
        match self.request(message, 0) {
            Ok(()) => Ok(true),
            Err(source) if is(&source, &[Errno::ENOENT, Errno::ESRCH]) || lacks_family(&source) => Ok(false),
            Err(source) => Err(NetError::Routing { step, source }),
        }
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        self.acknowledged()
    }

    fn acknowledged(&mut self) -> io::Result<()> {
        let (answer, _) = self.0.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    }
}

fn is(error: &io::Error, any_of: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| any_of.contains(&Errno::from_raw(code)))
}

/// A kernel without IPv6 says one of the first two; a `disable_ipv6` on `lo` the third (`fib6_nh_init`, net/ipv6/route.c).
fn lacks_family(error: &io::Error) -> bool {
    is(error, &[Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES])
}

/// Where `/proc` shows the setting of the namespace that the reading thread is in; it holds for both families.
const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// The table of the one route.
const TABLE: u32 = 0x513;

/// Ahead of every rule that CNIs are known to add (Cilium: 9, AWS: 512), behind the kernel's `local` table (0).
const RULE_PRIORITY: u32 = 5;

/// `lo` has this index in every namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK_IFINDEX: u32 = 1;

/// Who added the route (`rtm_protocol`); not in `/etc/iproute2/rt_protos`.
const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(0x53);

/// Who added the rule, and that `tcp_fwmark_accept` is ours to clear.
const SETTING_IS_OURS: RouteProtocol = RouteProtocol::Other(0x53);

/// Who added the rule, and that `tcp_fwmark_accept` had been set by somebody else.
const SETTING_WAS_SET: RouteProtocol = RouteProtocol::Other(0x54);
