//! `when[]` entries: L4 keys become conditions, HTTP keys are known to be out of sight, others are errors.
//!
//! The keys are those of istio/istio `pkg/config/security/security.go`.

use crate::discovery::addresses;
use crate::discovery::istio::When;
use crate::discovery::matches::{Pattern, Principal};
use crate::policy::{Condition, ConditionValues};

/// What a `when[]` entry means at L4.
pub(crate) enum Parsed {
    /// A condition.
    Condition(Condition),
    /// A legal key that only an HTTP proxy can evaluate.
    OutOfSight,
}

/// Parses one entry; the error names the field below the entry, and the reason.
pub(crate) fn parse(when: &When) -> Result<Parsed, (String, String)> {
    if when.values.is_empty() && when.not_values.is_empty() {
        return Err(("values".into(), "give values or notValues".into()));
    }
    let Some(of) = constructor(&when.key) else {
        return match is_http(&when.key) {
            true => Ok(Parsed::OutOfSight),
            false => {
                Err(("key".into(), format!("{:?} is no attribute of a connection or request", when.key)))
            }
        };
    };
    let values = of(&when.values).map_err(|reason| ("values".into(), reason))?;
    let not_values = of(&when.not_values).map_err(|reason| ("notValues".into(), reason))?;
    Ok(Parsed::Condition(Condition { values, not_values }))
}

type Constructor = fn(&[String]) -> Result<ConditionValues, String>;

fn constructor(key: &str) -> Option<Constructor> {
    Some(match key {
        "source.ip" => |values| each(values, addresses::block).map(ConditionValues::SourceIp),
        "remote.ip" => |values| each(values, addresses::block).map(ConditionValues::RemoteIp),
        "destination.ip" => |values| each(values, addresses::block).map(ConditionValues::DestinationIp),
        "destination.port" => {
            |values| each(values, addresses::port_text).map(ConditionValues::DestinationPort)
        }
        "source.namespace" => |values| {
            each(values, |v| Pattern::try_from(v.to_owned()).map(|p| p.0))
                .map(ConditionValues::SourceNamespace)
        },
        "source.principal" => |values| {
            each(values, |v| Principal::try_from(v.to_owned()).map(|p| p.0))
                .map(ConditionValues::SourcePrincipal)
        },
        _ => return None,
    })
}

fn each<T>(values: &[String], parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| parse(value)).collect()
}

fn is_http(key: &str) -> bool {
    let plain =
        ["request.auth.principal", "request.auth.audiences", "request.auth.presenter", "connection.sni"];
    let maps = ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
    plain.contains(&key) || maps.iter().any(|prefix| key.starts_with(prefix))
}
