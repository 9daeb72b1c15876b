//! Signet's test kit: nodes, pods, a CA and peers as guards, on network namespaces and cgroups of this machine.
//!
//! Nothing here knows how Signet works inside: it starts the built programs, writes the manifests they read, runs
//! ordinary clients and servers next to them, and looks at what comes out. Everything that must end is a guard, and a
//! whole [`testbed::Testbed`] can be removed by its name alone. See `tests/README.md` for how to write a test.

pub mod bench;
pub mod binaries;
pub mod ca;
pub mod capture;
pub mod cgroup;
pub mod clock;
pub mod cluster;
pub mod demo;
pub mod envoy;
pub mod haproxy;
pub mod harness;
pub mod hbone;
pub mod http;
mod live;
pub mod load;
pub mod manifests;
pub mod memory;
pub mod mesh;
pub mod need;
pub mod netns;
pub mod nginx;
pub mod node;
pub mod pod;
pub mod probe;
pub mod process;
pub mod prometheus;
pub mod svid;
pub mod testbed;
pub mod token;
pub mod vm;
pub mod wait;
