//! Which endpoint a virtual address leads to, for Services that have one on this node.
//!
//! The same choice that the engine would make from the same list: at random, or with `sessionAffinity: ClientIP` by
//! rendezvous hashing of the client's first address. A choice that turns out not to be direct goes to the engine with the
//! connection, which keeps it: choosing again would favour the endpoints of this node.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use signet_common::abi::Address;
use signet_common::direct::{Backend, MAX_BACKENDS, Service, Vip, affinity};

use crate::caller::Current;
use crate::maps::SERVICES;
use crate::redirect::first_address;

/// Chooses an endpoint; `None` where the address is no Service's that the kernel knows.
#[inline(always)]
pub fn choose(current: &Current, address: &Address, port: u16) -> Option<Backend> {
    let key = Vip { address: *address, port, padding: [0; 3] };
    // SAFETY: entries are replaced as a whole, and never changed in place.
    let service = unsafe { SERVICES.get(key) }?;
    if service.count == 0 {
        return None;
    }
    let index = match (service.affinity, current.workload) {
        (0, _) | (_, None) => random(service.count),
        (_, Some(workload)) => match first_address(workload, address.as_v4().is_some()) {
            Some(client) => belonging(service, client),
            None => random(service.count),
        },
    };
    Some(service.backends[index as usize & (MAX_BACKENDS - 1)])
}

#[inline(always)]
fn random(below: u32) -> u32 {
    // SAFETY: takes no argument.
    let random = unsafe { bpf_get_prandom_u32() } as u32;
    random % below
}

/// What [`weigh`] looks through.
struct Search {
    service: *const Service,
    client: Address,
    most: u64,
    found: u32,
}

/// The one with the most affinity. A loop that the verifier unrolls would be too long for it.
#[inline(always)]
fn belonging(service: &Service, client: Address) -> u32 {
    let mut search = Search { service, client, most: 0, found: 0 };
    let context = core::ptr::from_mut(&mut search).cast::<c_void>();
    // SAFETY: the callback has the signature the helper wants, and the context outlives the call.
    unsafe { bpf_loop(service.count, weigh as *mut c_void, context, 0) };
    search.found
}

/// Goes on with 0, and stops with 1.
unsafe extern "C" fn weigh(index: u32, search: *mut Search) -> i64 {
    if index as usize >= MAX_BACKENDS {
        return 1;
    }
    // SAFETY: `belonging` passes its own `search`, which points to an entry of the map.
    let (search, service) = unsafe { (&mut *search, &*(*search).service) };
    let backend = &service.backends[index as usize & (MAX_BACKENDS - 1)];
    let weight = affinity(&search.client, &backend.address, backend.port);
    if weight >= search.most {
        (search.found, search.most) = (index, weight);
    }
    0
}
