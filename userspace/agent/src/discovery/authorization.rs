//! An AuthorizationPolicy to the rules of the policy engine.
//!
//! What cannot be evaluated at L4 fails safe. An attribute of HTTP marks its rule unsupported: a DENY then counts it as
//! matched, an ALLOW as not matched. CUSTOM asks somebody who is not here, so it denies what it would have asked for.
//! AUDIT and policies for gateways (`targetRefs`) concern nobody here: they become a policy that matches nothing, so that
//! its status can say why.

use signet_manifests::{Document, DocumentError};

use crate::discovery::condition::{self, Parsed};
use crate::discovery::istio::{
    ActionName, AuthorizationPolicySpec, OperationSpec, Resource, RuleSpec, SourceSpec,
};
use crate::policy::{Action, AuthorizationPolicy, Operation, Rule, Source};

/// The policy.
pub(crate) fn policy(document: &Document) -> Result<AuthorizationPolicy, DocumentError> {
    let manifest: Resource<AuthorizationPolicySpec> = document.parse()?;
    let annotations = manifest.metadata.annotations.unwrap_or_default();
    let spec = manifest.spec.unwrap_or_default();
    let mut warnings = Vec::new();
    let applies = applies(&spec, &mut warnings);
    let rules = rules(document, &spec, &mut warnings)?;
    let dry_run = annotations.get(DRY_RUN).is_some_and(|value| is_true(value));
    Ok(AuthorizationPolicy {
        namespace: document.key().namespace.clone(),
        name: document.key().name.clone(),
        selector: spec.selector.map(|selector| selector.match_labels).unwrap_or_default(),
        action: if applies && spec.action == ActionName::Allow { Action::Allow } else { Action::Deny },
        dry_run,
        rules: if applies { rules } else { Vec::new() },
        warnings,
    })
}

/// Whether the policy has any effect on workloads; where not, the warnings say why.
fn applies(spec: &AuthorizationPolicySpec, warnings: &mut Vec<String>) -> bool {
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        warnings.push("targetRefs: is for a gateway or waypoint and has no effect on workloads".into());
        return false;
    }
    if spec.action == ActionName::Audit {
        warnings.push("action: AUDIT is not supported and has no effect".into());
        return false;
    }
    if spec.action == ActionName::Custom {
        warnings.push("action: CUSTOM is not supported: what its rules match is denied".into());
    }
    true
}

fn rules(
    document: &Document,
    spec: &AuthorizationPolicySpec,
    warnings: &mut Vec<String>,
) -> Result<Vec<Rule>, DocumentError> {
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.action != ActionName::Allow {
        return Err(
            document.error("spec.rules", "is empty: only an ALLOW policy may have no rules (it denies all)")
        );
    }
    let mut parsed = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let mut reader =
            RuleReader { document, path: format!("spec.rules[{index}]"), unsupported: Vec::new() };
        let mut rule = reader.rule(rule)?;
        rule.unsupported |= spec.action == ActionName::Custom;
        parsed.push(rule);
        warnings.extend(reader.unsupported.iter().map(|field| unsupported(field, spec.action)));
    }
    Ok(parsed)
}

fn unsupported(field: &str, action: ActionName) -> String {
    let effect = match action {
        ActionName::Allow => "this rule allows nothing",
        _ => "this rule denies as if it matched",
    };
    format!("{field}: is an attribute of HTTP, which is not evaluated: {effect}")
}

/// One rule being read.
struct RuleReader<'a> {
    document: &'a Document,
    path: String,
    /// The paths of the fields that L4 cannot see.
    unsupported: Vec<String>,
}

impl RuleReader<'_> {
    fn rule(&mut self, spec: &RuleSpec) -> Result<Rule, DocumentError> {
        let mut rule = Rule::default();
        for (index, from) in self.items("from", spec.from.as_deref())? {
            rule.from.push(self.source(&format!("from[{index}].source"), &from.source)?);
        }
        for (index, to) in self.items("to", spec.to.as_deref())? {
            rule.to.push(self.operation(&format!("to[{index}].operation"), &to.operation)?);
        }
        for (index, when) in self.items("when", spec.when.as_deref())? {
            let path = format!("when[{index}]");
            match condition::parse(when)
                .map_err(|(field, reason)| self.error(&format!("{path}.{field}"), reason))?
            {
                Parsed::Condition(condition) => rule.when.push(condition),
                Parsed::OutOfSight => self.unsupported.push(format!("{}.{path}.key {}", self.path, when.key)),
            }
        }
        rule.unsupported = !self.unsupported.is_empty();
        Ok(rule)
    }

    /// The items of a list that may be absent, but not empty: `from: []` reads like "nobody" and would mean "anybody".
    fn items<'s, T>(
        &self,
        field: &str,
        list: Option<&'s [T]>,
    ) -> Result<impl Iterator<Item = (usize, &'s T)> + use<'s, T>, DocumentError> {
        match list {
            Some([]) => Err(self.error(field, "is empty: leave it out to match everything".into())),
            list => Ok(list.unwrap_or_default().iter().enumerate()),
        }
    }

    fn source(&mut self, path: &str, spec: &SourceSpec) -> Result<Source, DocumentError> {
        let http = [
            ("requestPrincipals", &spec.request_principals),
            ("notRequestPrincipals", &spec.not_request_principals),
        ];
        let seen = self.out_of_sight(path, &http);
        let accounts = |all: &[crate::discovery::matches::ServiceAccount]| {
            all.iter().map(|account| account.within(&self.document.key().namespace)).collect()
        };
        let source = Source {
            principals: spec.principals.iter().map(|p| p.0.clone()).collect(),
            not_principals: spec.not_principals.iter().map(|p| p.0.clone()).collect(),
            namespaces: spec.namespaces.iter().map(|p| p.0.clone()).collect(),
            not_namespaces: spec.not_namespaces.iter().map(|p| p.0.clone()).collect(),
            service_accounts: accounts(&spec.service_accounts),
            not_service_accounts: accounts(&spec.not_service_accounts),
            trust_domains: spec.trust_domains.iter().map(|p| p.0.clone()).collect(),
            not_trust_domains: spec.not_trust_domains.iter().map(|p| p.0.clone()).collect(),
            ip_blocks: spec.ip_blocks.iter().map(|b| b.0).collect(),
            not_ip_blocks: spec.not_ip_blocks.iter().map(|b| b.0).collect(),
            remote_ip_blocks: spec.remote_ip_blocks.iter().map(|b| b.0).collect(),
            not_remote_ip_blocks: spec.not_remote_ip_blocks.iter().map(|b| b.0).collect(),
        };
        self.not_empty(path, seen || source != Source::default())?;
        Ok(source)
    }

    fn operation(&mut self, path: &str, spec: &OperationSpec) -> Result<Operation, DocumentError> {
        let http = [
            ("hosts", &spec.hosts),
            ("notHosts", &spec.not_hosts),
            ("methods", &spec.methods),
            ("notMethods", &spec.not_methods),
            ("paths", &spec.paths),
            ("notPaths", &spec.not_paths),
        ];
        let seen = self.out_of_sight(path, &http);
        let operation = Operation {
            ports: spec.ports.iter().map(|p| p.0).collect(),
            not_ports: spec.not_ports.iter().map(|p| p.0).collect(),
        };
        self.not_empty(path, seen || operation != Operation::default())?;
        Ok(operation)
    }

    /// Notes the fields that only HTTP has; true when there was one.
    fn out_of_sight(&mut self, path: &str, fields: &[(&str, &Vec<String>)]) -> bool {
        let used: Vec<_> = fields.iter().filter(|(_, values)| !values.is_empty()).collect();
        self.unsupported.extend(used.iter().map(|(field, _)| format!("{}.{path}.{field}", self.path)));
        !used.is_empty()
    }

    fn not_empty(&self, path: &str, has_attributes: bool) -> Result<(), DocumentError> {
        match has_attributes {
            true => Ok(()),
            false => Err(self.error(path, "is empty: name at least one attribute".into())),
        }
    }

    fn error(&self, path: &str, reason: String) -> DocumentError {
        self.document.error(&format!("{}.{path}", self.path), reason)
    }
}

/// Go's `strconv.ParseBool`, with which Istio reads the annotation; what it cannot read is no dry run.
fn is_true(value: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&value)
}

const DRY_RUN: &str = "istio.io/dry-run";

#[cfg(test)]
mod tests;
