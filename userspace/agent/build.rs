//! Finds the eBPF object that `kernel` embeds.
//!
//! `SIGNET_BPF_OBJECT` names it, else it is where `cargo xtask build` puts it. Without one the crate still compiles, so
//! that `cargo check`, clippy and rustdoc need no eBPF toolchain; the binary then says so when it is asked to load.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=SIGNET_BPF_OBJECT");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    println!("cargo:rustc-check-cfg=cfg(signet_bpf_object)");
    let object = object();
    println!("cargo:rerun-if-changed={}", object.display());
    if object.is_file() {
        println!("cargo:rustc-cfg=signet_bpf_object");
        println!("cargo:rustc-env=SIGNET_BPF_OBJECT={}", object.display());
    }
}

fn object() -> PathBuf {
    if let Some(path) = std::env::var_os("SIGNET_BPF_OBJECT") {
        return PathBuf::from(path);
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("bpfel/signet.o")
}
