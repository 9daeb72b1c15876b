//! signet-ca: signs the identities of workloads for the nodes they run on.
//!
//! It speaks the Istio CA API (`CreateCertificate`), so that ztunnel and istio-agent can ask it as well as `signetd`. A
//! node proves who it is by a Kubernetes token bound to its pod; it gets an identity only if the `inventory` knows a
//! workload with that identity on that very node. So a node that is taken over can impersonate its own workloads and no
//! others.
//!
//! | file | what |
//! |---|---|
//! | `service` | one request from the wire to the answer: authenticate, authorize, parse, issue |
//! | `token`, `jwks` | who asks: by a signature, or by the API server's word |
//! | `inventory`, `grant` | what they may ask for |
//! | `csr` | the key they ask for |
//! | `issuer`, `root` | what signs it: a root in files or in a Secret, or an intermediate |
//! | `publish` | the roots, in every namespace |
//! | `serving`, `listener` | its own TLS |
//! | `config`, `metrics`, `status`, `app` | the rest of the process |
//!
//! In a cluster several replicas run beside each other, without a leader: they share nothing but the root. It keeps no
//! database: what it has issued is in its log and nowhere else. It does not revoke; short lifetimes do.

pub mod app;
mod config;
mod csr;
mod grant;
mod inventory;
mod issuer;
mod jwks;
mod listener;
mod metrics;
mod publish;
mod refusal;
mod root;
mod service;
mod serving;
mod status;
mod token;

#[cfg(test)]
mod tests;
