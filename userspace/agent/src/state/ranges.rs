//! Which addresses are the cluster's own, whether or not anything is known of them yet.
//!
//! Asked only about addresses of which nothing is known, so that "not told yet" is not taken for "outside of the mesh".
//! A look-up asks one table for each length of prefix that there is, of which a cluster has one or two: it takes the same
//! time for a thousand nodes.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::RwLock;

use super::object::{RangeKind, Ranges as Told};

/// Written by `state`'s writer.
#[derive(Debug, Default)]
pub(super) struct Ranges(RwLock<HashMap<RangeKind, Blocks>>);

#[derive(Debug, Default)]
struct Blocks {
    by_owner: HashMap<Arc<str>, Vec<IpNet>>,
    /// By length of the prefix: how many have told of each block.
    by_length: BTreeMap<u8, HashMap<u128, usize>>,
}

impl Ranges {
    pub(super) fn put(&self, told: &Told) {
        self.0.write().entry(told.kind).or_default().put(&told.owner, &told.blocks);
    }

    pub(super) fn remove(&self, kind: RangeKind, owner: &Arc<str>) {
        self.0.write().entry(kind).or_default().put(owner, &[]);
    }

    /// What an address inside the cluster must be; `None` for one that is outside, or was said to be.
    pub(super) fn of(&self, address: IpAddr) -> Option<RangeKind> {
        let kinds = self.0.read();
        let bits = bits(address);
        let is = |kind: &RangeKind| kinds.get(kind).is_some_and(|blocks| blocks.contain(bits));
        [RangeKind::Services, RangeKind::Pods].into_iter().find(|kind| is(kind) && !is(&RangeKind::Outside))
    }

    /// The block of pods' addresses that begins with this one, past the address of the block itself.
    pub(super) fn begun_by(&self, address: IpAddr) -> Option<IpNet> {
        self.0.read().get(&RangeKind::Pods)?.begun_by(bits(address))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.read().values().all(|blocks| blocks.by_owner.is_empty() && blocks.by_length.is_empty())
    }
}

impl Blocks {
    /// Replaces what `owner` has told.
    fn put(&mut self, owner: &Arc<str>, blocks: &[IpNet]) {
        for block in self.by_owner.remove(owner).into_iter().flatten() {
            self.release(prefix(block));
        }
        if blocks.is_empty() {
            return;
        }
        for block in blocks {
            let (length, bits) = prefix(*block);
            *self.by_length.entry(length).or_default().entry(bits).or_default() += 1;
        }
        self.by_owner.insert(Arc::clone(owner), blocks.to_vec());
    }

    fn release(&mut self, (length, bits): (u8, u128)) {
        let Some(blocks) = self.by_length.get_mut(&length) else { return };
        if let Some(count) = blocks.get_mut(&bits) {
            *count -= 1;
            if *count == 0 {
                blocks.remove(&bits);
            }
        }
        if blocks.is_empty() {
            self.by_length.remove(&length);
        }
    }

    fn contain(&self, address: u128) -> bool {
        let mut lengths = self.by_length.iter();
        lengths.any(|(length, blocks)| blocks.contains_key(&(address & mask(*length))))
    }

    fn begun_by(&self, address: u128) -> Option<IpNet> {
        let before = address.checked_sub(1)?;
        let is_block = |(length, blocks): &(&u8, &HashMap<u128, usize>)| {
            before & mask(**length) == before
                && address & mask(**length) == before
                && blocks.contains_key(&before)
        };
        let (length, _) = self.by_length.iter().find(is_block)?;
        Some(block(*length, before))
    }
}

/// An IPv4 address as the IPv6 address that maps it.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The length of a block's prefix, and its bits, in the mapped form.
fn prefix(block: IpNet) -> (u8, u128) {
    let length = block.prefix_len() + if block.addr().is_ipv4() { 96 } else { 0 };
    (length, bits(block.addr()) & mask(length))
}

/// The inverse of [`prefix`].
fn block(length: u8, bits: u128) -> IpNet {
    let address = IpAddr::V6(bits.into()).to_canonical();
    let length = if address.is_ipv4() { length.saturating_sub(96) } else { length };
    IpNet::new_assert(address, length)
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(kind: RangeKind, owner: &str, blocks: &[&str]) -> Told {
        let blocks = blocks.iter().map(|block| block.parse().unwrap()).collect();
        Told { kind, owner: owner.into(), blocks, node: Vec::new() }
    }

    fn of(ranges: &Ranges, address: &str) -> Option<RangeKind> {
        ranges.of(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_what_the_range_around_it_is_for() {
        let ranges = Ranges::default();
        ranges.put(&told(RangeKind::Services, "kubernetes", &["10.96.0.0/16", "fd00:96::/108"]));
        ranges.put(&told(RangeKind::Pods, "n1", &["10.244.1.0/24", "fd00:244:1::/64"]));
        for (address, kind) in [
            ("10.96.3.4", Some(RangeKind::Services)),
            ("::ffff:10.96.3.4", Some(RangeKind::Services)),
            ("fd00:96::1", Some(RangeKind::Services)),
            ("10.244.1.255", Some(RangeKind::Pods)),
            ("fd00:244:1::7", Some(RangeKind::Pods)),
            ("10.244.2.1", None),
            ("10.95.255.255", None),
            ("fd00:97::1", None),
        ] {
            assert_eq!(of(&ranges, address), kind, "{address}");
        }
    }

    #[test]
    fn what_is_said_to_be_outside_is_outside() {
        let ranges = Ranges::default();
        ranges.put(&told(RangeKind::Pods, "n1", &["10.244.1.0/24"]));
        ranges.put(&told(RangeKind::Outside, "", &["10.244.1.1/32"]));
        assert_eq!(of(&ranges, "10.244.1.1"), None);
        assert_eq!(of(&ranges, "10.244.1.2"), Some(RangeKind::Pods));
    }

    #[test]
    fn the_first_address_of_a_block_is_told_from_the_others() {
        let ranges = Ranges::default();
        ranges.put(&told(RangeKind::Pods, "n1", &["10.244.1.0/24", "fd00:244:1::/64"]));
        ranges.put(&told(RangeKind::Pods, "n2", &["10.244.2.7/32"]));
        ranges.put(&told(RangeKind::Services, "kubernetes", &["10.96.0.0/16"]));
        for (address, block) in [
            ("10.244.1.1", Some("10.244.1.0/24")),
            ("fd00:244:1::1", Some("fd00:244:1::/64")),
            ("10.244.1.0", None),
            ("10.244.1.2", None),
            ("10.244.2.8", None),
            ("10.96.0.1", None),
            ("0.0.0.0", None),
        ] {
            let begun = ranges.begun_by(address.parse().unwrap());
            assert_eq!(begun, block.map(|block| block.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_block_stays_until_the_last_that_told_of_it_is_gone() {
        let ranges = Ranges::default();
        ranges.put(&told(RangeKind::Pods, "a", &["10.244.1.0/24"]));
        ranges.put(&told(RangeKind::Pods, "b", &["10.244.1.0/24", "10.244.2.0/24"]));
        ranges.put(&told(RangeKind::Pods, "b", &["10.244.1.0/24"]));
        assert_eq!(of(&ranges, "10.244.2.1"), None);
        ranges.remove(RangeKind::Pods, &"a".into());
        assert_eq!(of(&ranges, "10.244.1.9"), Some(RangeKind::Pods));
        ranges.remove(RangeKind::Pods, &"b".into());
        assert!(of(&ranges, "10.244.1.9").is_none() && ranges.is_empty());
    }

    proptest! {
        #[test]
        fn it_answers_as_the_blocks_themselves_would(address: u32, blocks in prop::collection::vec((any::<u32>(), 0u8..=32), 0..6)) {
            let address = IpAddr::from(address.to_be_bytes());
            let net = |(bits, length): (u32, u8)| IpNet::new(IpAddr::from(bits.to_be_bytes()), length).unwrap();
            let blocks: Vec<IpNet> = blocks.into_iter().map(net).collect();
            let expected = blocks.iter().any(|block| block.contains(&address));
            let ranges = Ranges::default();
            ranges.put(&Told { kind: RangeKind::Pods, owner: "n".into(), blocks, node: Vec::new() });
            prop_assert_eq!(ranges.of(address).is_some(), expected);
        }

        #[test]
        fn a_block_is_begun_by_its_first_address(bits: u128, v4_bits: u32, length in 0u8..=128, v4: bool) {
            let block = match v4 {
                true => IpNet::new(IpAddr::V4(v4_bits.into()), length % 33).unwrap(),
                false => IpNet::new(IpAddr::V6(bits.into()), length).unwrap(),
            };
            let ranges = Ranges::default();
            ranges.put(&Told { kind: RangeKind::Pods, owner: "n".into(), blocks: vec![block], node: Vec::new() });
            let first = match block.network() {
                IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
                IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
            };
            let begun = first.filter(|first| block.contains(first)).map(|_| block.trunc());
            prop_assert_eq!(first.and_then(|first| ranges.begun_by(first)), begun);
        }
    }
}
