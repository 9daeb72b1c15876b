//! The server name that tells hostNetwork workloads apart: `port-<n>.hbone.signet.dev`.
//!
//! They share the node's address, and an HBONE client names the port only after the handshake, when the server has
//! already shown a certificate. So Signet's client names the port in the SNI, for hostNetwork destinations only:
//! towards pods it sends none, as ztunnel does, and whatever other clients send there means nothing to us.

/// The server name for a destination port.
#[must_use]
pub(crate) fn for_port(port: u16) -> String {
    format!("{PREFIX}{port}{SUFFIX}")
}

/// The destination port that a server name tells; `None` for any other name.
#[must_use]
pub(crate) fn port(name: &str) -> Option<u16> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    let port = digits.parse().ok().filter(|port| *port != 0)?;
    // One name per port: no leading zeros or signs.
    (name == for_port(port)).then_some(port)
}

const PREFIX: &str = "port-";
const SUFFIX: &str = ".hbone.signet.dev";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_names_tell_no_port() {
        for name in [
            "",
            "example.com",
            "port-0.hbone.signet.dev",
            "port-080.hbone.signet.dev",
            "port-+80.hbone.signet.dev",
            "port-65536.hbone.signet.dev",
            "port-80.hbone.signet.dev.evil.example",
            "outbound_.80_._.svc.ns.svc.cluster.local",
        ] {
            assert_eq!(port(name), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn every_port_reads_back(number in 1u16..) {
            prop_assert_eq!(port(&for_port(number)), Some(number));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,300}") {
            if let Some(number) = port(&text) {
                prop_assert_eq!(for_port(number), text);
            }
        }
    }
}
