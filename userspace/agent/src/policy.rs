//! Rules to tables, and the one question everything asks: may this flow be?
//!
//! The input types mirror Istio's objects after `discovery` has parsed them (nothing here knows YAML); the answer is a
//! [`Permit`] one must hold to go on, or a [`Denial`] that names who said no. Pure: no clock, no lock, no task; `state`
//! holds the one [`PolicySet`] under its lock. It neither logs nor counts, which is the caller's to do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use signet_identity::SpiffeId;

use self::index::{Index, Named};
pub use self::object::{
    Action, AuthorizationPolicy, Condition, ConditionValues, MtlsMode, Operation, PeerAuthentication, Rule,
    Source, StringMatch,
};
use self::rule::Attributes;

mod index;
mod object;
mod rule;
#[cfg(test)]
mod tests;

/// Proof that a flow was authorised, and under which epoch of the policy tables. Only [`PolicySet::authorize`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    epoch: u64,
    /// The ALLOW policy that matched (`namespace/name`); `None` where no ALLOW policy applies.
    rule: Option<Arc<str>>,
}

impl Permit {
    /// The policy epoch this permit was made under.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// The ALLOW policy that matched, if one had to.
    #[must_use]
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }
}

/// Why a flow may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A DENY policy (`namespace/name`) matched.
    Denied(Arc<str>),
    /// ALLOW policies apply to the destination and none matched; the list names them.
    NotAllowed(Vec<Arc<str>>),
    /// PeerAuthentication asks for mTLS and the peer has none; the name of the object that said so.
    MtlsRequired(Arc<str>),
    /// A policy is referenced that is not known yet.
    PolicyUnknown(Arc<str>),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(policy) => write!(f, "denied by AuthorizationPolicy {policy}"),
            Self::NotAllowed(policies) => {
                let named = &policies[..policies.len().min(NAMED_POLICIES)];
                write!(f, "not allowed by any AuthorizationPolicy of the destination ({}", named.join(", "))?;
                match policies.len() - named.len() {
                    0 => f.write_str(")"),
                    more => write!(f, " and {more} more)"),
                }
            }
            Self::MtlsRequired(policy) => write!(f, "mTLS required by PeerAuthentication {policy}"),
            Self::PolicyUnknown(policy) => write!(f, "policy {policy} is referenced but not known yet"),
        }
    }
}

/// One connection, as policy sees it.
#[derive(Clone, Debug)]
pub struct Flow<'a> {
    /// The authenticated SPIFFE ID of the client; `None` on plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The address of the connection's peer (`ipBlocks`, `source.ip`).
    pub source_ip: IpAddr,
    /// The original client, where a proxy told it (`remoteIpBlocks`); otherwise the same as `source_ip`.
    pub remote_ip: IpAddr,
    /// The workload's namespace the flow arrives at.
    pub namespace: &'a str,
    /// The destination workload's labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The destination address (`destination.ip`).
    pub destination_ip: IpAddr,
    /// The application's port, never 15008.
    pub destination_port: u16,
}

/// What dry-run policies would have changed, for the log: it opens nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// No dry-run policy applies to the destination.
    Silent,
    /// With them enforced the flow would pass.
    WouldAllow,
    /// With them enforced the flow would be denied.
    WouldDeny(Denial),
}

/// All policies of the mesh that this node knows. One writer (`state`), read under its lock.
#[derive(Debug)]
pub struct PolicySet {
    root_namespace: Arc<str>,
    authorizations: Index<AuthorizationPolicy>,
    authentications: Index<PeerAuthentication>,
    epoch: u64,
}

impl PolicySet {
    /// Sets the mesh's root namespace (`istio-system` by default).
    #[must_use]
    pub fn new(root_namespace: &str) -> Self {
        Self {
            root_namespace: root_namespace.into(),
            authorizations: Index::default(),
            authentications: Index::default(),
            epoch: 0,
        }
    }

    /// Adds or replaces by (namespace, name); bumps the epoch unless it is the same as before.
    pub fn upsert_authorization(&mut self, policy: AuthorizationPolicy) {
        if self.authorizations.upsert(policy) {
            self.invalidate();
        }
    }

    /// Removes; bumps the epoch where it was there.
    pub fn remove_authorization(&mut self, namespace: &str, name: &str) {
        if self.authorizations.remove(namespace, name) {
            self.invalidate();
        }
    }

    /// Adds or replaces by (namespace, name); bumps the epoch unless it is the same as before.
    pub fn upsert_peer_authentication(&mut self, policy: PeerAuthentication) {
        if self.authentications.upsert(policy) {
            self.invalidate();
        }
    }

    /// Removes; bumps the epoch where it was there.
    pub fn remove_peer_authentication(&mut self, namespace: &str, name: &str) {
        if self.authentications.remove(namespace, name) {
            self.invalidate();
        }
    }

    /// Every AuthorizationPolicy, by namespace and name.
    #[must_use]
    pub fn authorizations(&self) -> Vec<Arc<AuthorizationPolicy>> {
        self.authorizations.all()
    }

    /// Every PeerAuthentication, by namespace and name.
    #[must_use]
    pub fn peer_authentications(&self) -> Vec<Arc<PeerAuthentication>> {
        self.authentications.all()
    }

    /// The current epoch: changes whenever an answer could.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Bumps the epoch: something outside the policies that answers depend on has changed (a workload's labels).
    pub fn invalidate(&mut self) {
        self.epoch += 1;
    }

    /// Istio's evaluation order: mTLS mode, then any DENY, then ALLOW. Dry-run policies have no say.
    ///
    /// # Errors
    /// The denial, naming the policy.
    pub fn authorize(&self, flow: &Flow<'_>) -> Result<Permit, Denial> {
        self.require_identity(flow)?;
        let rule = self.evaluate(flow, |policy| !policy.dry_run)?;
        Ok(Permit { epoch: self.epoch, rule })
    }

    /// What AuthorizationPolicies would say of the flow if those in dry-run were enforced too.
    #[must_use]
    pub fn shadow(&self, flow: &Flow<'_>) -> Shadow {
        if !self.applicable(flow).any(|named| named.object.dry_run) {
            return Shadow::Silent;
        }
        match self.evaluate(flow, |_| true) {
            Ok(_) => Shadow::WouldAllow,
            Err(denial) => Shadow::WouldDeny(denial),
        }
    }

    /// The mTLS mode that holds for a workload's port, never `Unset`, and the object that says so.
    ///
    /// The oldest object of each level counts, the more specific level first; selectors and ports have no meaning in
    /// the root namespace (istio/istio `ambient/authorization.go`, `convertedSelectorPeerAuthentications`).
    #[must_use]
    pub fn mtls_mode(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
    ) -> (MtlsMode, Option<Arc<str>>) {
        match self.mtls_object(namespace, labels, port) {
            Some((mode, named)) => (mode, Some(Arc::clone(&named.id))),
            None => (MtlsMode::Permissive, None),
        }
    }

    /// The object that decides the mode; `None` where nobody says, which means PERMISSIVE.
    fn mtls_object(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        port: u16,
    ) -> Option<(MtlsMode, &Named<PeerAuthentication>)> {
        let own = Some(namespace).filter(|own| **own != *self.root_namespace);
        let workload = own.and_then(|own| oldest(self.authentications.selected(own, labels)));
        let whole_namespace = own.and_then(|own| oldest(self.authentications.whole(own)));
        let mesh = oldest(self.authentications.whole(&self.root_namespace));

        let of_port = workload.and_then(|named| Some((*named.object.ports.get(&port)?, named)));
        let levels = [workload, whole_namespace, mesh].into_iter().flatten();
        let mut modes = of_port.into_iter().chain(levels.map(|named| (named.object.mode, named)));
        modes.find(|(mode, _)| *mode != MtlsMode::Unset)
    }

    fn require_identity(&self, flow: &Flow<'_>) -> Result<(), Denial> {
        if flow.identity.is_some() {
            return Ok(());
        }
        match self.mtls_object(flow.namespace, flow.labels, flow.destination_port) {
            Some((MtlsMode::Strict, named)) => Err(Denial::MtlsRequired(Arc::clone(&named.id))),
            _ => Ok(()),
        }
    }

    fn evaluate(
        &self,
        flow: &Flow<'_>,
        enforced: impl Fn(&AuthorizationPolicy) -> bool,
    ) -> Result<Option<Arc<str>>, Denial> {
        let attributes = Attributes::of(flow);
        let applicable = self.applicable(flow).filter(|named| enforced(&named.object));
        let (deny, allow): (Vec<_>, Vec<_>) =
            applicable.partition(|named| named.object.action == Action::Deny);
        let matching = |named: &&&Named<AuthorizationPolicy>| named.object.matches(&attributes);

        if let Some(policy) = deny.iter().find(matching) {
            return Err(Denial::Denied(Arc::clone(&policy.id)));
        }
        match allow.iter().find(matching) {
            Some(policy) => Ok(Some(Arc::clone(&policy.id))),
            None if allow.is_empty() => Ok(None),
            None => Err(Denial::NotAllowed(allow.iter().map(|policy| Arc::clone(&policy.id)).collect())),
        }
    }

    /// Mesh-wide policies and those of the destination's namespace, each by its selector.
    fn applicable<'s>(&'s self, flow: &Flow<'s>) -> impl Iterator<Item = &'s Named<AuthorizationPolicy>> {
        let own = Some(flow.namespace).filter(|own| **own != *self.root_namespace);
        let labels = flow.labels;
        [Some(&*self.root_namespace), own].into_iter().flatten().flat_map(move |namespace| {
            self.authorizations.whole(namespace).chain(self.authorizations.selected(namespace, labels))
        })
    }
}

/// The first by creation, then by name, as Istio sorts (istio/istio `pilot/pkg/model`, `sortConfigByCreationTime`).
fn oldest<'a>(
    objects: impl Iterator<Item = &'a Named<PeerAuthentication>>,
) -> Option<&'a Named<PeerAuthentication>> {
    objects.min_by(|a, b| (a.object.created, &a.object.name).cmp(&(b.object.created, &b.object.name)))
}

/// How many policies a denial's text names: a log line stays a line however many apply.
const NAMED_POLICIES: usize = 8;
